#include "comm/pmix.h"

#include <fmt/format.h>

#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>

#include "base/loaded.h"
#include "comm/blocking_calls.h"
#include "comm/pmix_abi.h"

namespace ringfold::comm {
namespace {

Result<pmix::Library> load_pmix() {
  base::Loaded file("libpmix.so.2");
  if (!file.ok()) return Status(Code::kUnavailable, file.why());
  pmix::Library library{};
  file.find(library.init, "PMIx_Init");
  file.find(library.finalize, "PMIx_Finalize");
  file.find(library.get, "PMIx_Get");
  file.find(library.put, "PMIx_Put");
  file.find(library.commit, "PMIx_Commit");
  file.find(library.fence, "PMIx_Fence");
  file.find(library.error_string, "PMIx_Error_string");
  if (file.missing().empty()) return library;
  return Status(Code::kUnavailable, fmt::format("libpmix.so.2 has no {}", file.missing()));
}

// One process's place at its server. Its calls may block for as long as the server likes.
class PmixClient {
 public:
  // Connects; once.
  static Result<std::shared_ptr<PmixClient>> make() {
    auto library = load_pmix();
    if (!library.ok()) return library.status();
    auto client = std::shared_ptr<PmixClient>(new PmixClient(*library));
    if (auto s = client->library_.init(&client->me_, nullptr, 0); s != pmix::kSuccess)
      return client->failed("PMIx_Init", s);
    return client;
  }
  void finalize() { static_cast<void>(library_.finalize(nullptr, 0)); }

  Result<PmixJob> job() const {
    const auto size = number(of(pmix::kWholeJob), pmix::kJobSize);
    if (!size.ok()) return size.status();
    PmixJob job{.rank = static_cast<int>(me_.rank), .size = static_cast<int>(*size)};
    if (auto n = number(of(pmix::kWholeJob), pmix::kLocalSize); n.ok()) job.local_size = static_cast<int>(*n);
    if (auto n = number(me_, pmix::kLocalRank); n.ok()) job.local_rank = static_cast<int>(*n);
    return job;
  }

  Result<std::vector<std::string>> exchange(std::string mine) {
    const std::string key = fmt::format("ringfold.card.{}", exchanges_++);
    pmix::Value value{.type = pmix::Value::kBytes, .room = {}};
    value.bytes = {mine.data(), mine.size()};
    if (auto s = library_.put(pmix::kToEverybody, key.c_str(), &value); s != pmix::kSuccess)
      return failed("PMIx_Put", s);
    if (auto s = library_.commit(); s != pmix::kSuccess) return failed("PMIx_Commit", s);
    const auto all = of(pmix::kWholeJob);
    pmix::Info collect{};
    std::memcpy(collect.key, pmix::kCollectData, sizeof(pmix::kCollectData));
    collect.value.type = pmix::Value::kBool;
    collect.value.flag = true;
    if (auto s = library_.fence(&all, 1, &collect, 1); s != pmix::kSuccess) return failed("PMIx_Fence", s);
    const auto size = number(all, pmix::kJobSize);
    if (!size.ok()) return size.status();
    std::vector<std::string> records;
    for (uint32_t r = 0; r < *size; ++r) {
      const auto peer = of(r);
      pmix::Value* theirs = nullptr;
      const auto s = library_.get(&peer, key.c_str(), nullptr, 0, &theirs);
      if (s != pmix::kSuccess || theirs == nullptr) return failed(fmt::format("PMIx_Get of rank {}'s card", r), s);
      std::string& record = records.emplace_back();
      if (theirs->type == pmix::Value::kBytes) {
        record.assign(theirs->bytes.data, theirs->bytes.size);
        std::free(theirs->bytes.data);
      }
      std::free(theirs);
    }
    return records;
  }

 private:
  explicit PmixClient(const pmix::Library& library) : library_(library) {}
  pmix::Process of(uint32_t rank) const {
    pmix::Process process = me_;
    process.rank = rank;
    return process;
  }
  Status failed(const std::string& what, pmix::Status status) const {
    return {Code::kUnavailable, fmt::format("{}: {}", what, library_.error_string(status))};
  }
  Result<uint32_t> number(const pmix::Process& process, const char* key) const {
    pmix::Value* value = nullptr;
    const auto s = library_.get(&process, key, nullptr, 0, &value);
    if (s != pmix::kSuccess || value == nullptr) return failed(fmt::format("PMIx_Get of {}", key), s);
    const auto type = value->type;
    const uint32_t number = type == pmix::Value::kUint16 ? value->uint16 : value->uint32;
    std::free(value);
    if (type == pmix::Value::kUint16 || type == pmix::Value::kUint32) return number;
    return Status(Code::kUnavailable, fmt::format("PMIx says {} in a type of its own ({})", key, type));
  }

  const pmix::Library library_;
  pmix::Process me_{};
  int exchanges_ = 0;
};

// The process's connection.
class PmixCaller {
 public:
  template <typename T>
  Result<T> call(double timeout_s, std::function<Result<T>(PmixClient&)> what) {
    return calls_.call<T>(timeout_s, [this, what]() -> Result<T> {
      if (!client_) {
        auto made = PmixClient::make();
        if (!made.ok()) return made.status();
        client_ = *std::move(made);
      }
      return what(*client_);
    });
  }
  void end() {
    calls_.unless_stuck([&] {
      if (client_) client_->finalize();
    });
  }

 private:
  BlockingCalls calls_{"PMIx's server"};
  std::shared_ptr<PmixClient> client_;  // the thread of a call that is stuck owns it
};

PmixCaller& pmix_caller() {
  static auto* const kCaller = [] {
    std::atexit([] { pmix_caller().end(); });
    return new PmixCaller;  // a thread that is stuck may outlive main()
  }();
  return *kCaller;
}

}  // namespace

const Pmix& system_pmix() {
  static const Pmix kSystem = {.job =
                                   [](double timeout_s) {
                                     return pmix_caller().call<PmixJob>(
                                         timeout_s, [](PmixClient& client) { return client.job(); });
                                   },
                               .exchange =
                                   [](const std::string& mine, double timeout_s) {
                                     return pmix_caller().call<std::vector<std::string>>(
                                         timeout_s, [mine](PmixClient& client) { return client.exchange(mine); });
                                   }};
  return kSystem;
}

bool has_pmix_server(const Environment& environment) {
  for (const auto& [name, value] : environment) {
    if (name.starts_with("PMIX_SERVER_URI") && !value.empty()) return true;
  }
  return false;
}

}  // namespace ringfold::comm
