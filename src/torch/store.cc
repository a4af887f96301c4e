#include "torch/store.h"

#include <fmt/format.h>

#include <algorithm>
#include <thread>
#include <vector>

namespace ringfold::pytorch {
namespace {

using std::chrono::milliseconds;

std::string list_of(const std::vector<int>& ranks) {
  std::string text;
  for (int r : ranks) text += (text.empty() ? "" : ", ") + std::to_string(r);
  return text;
}

}  // namespace

Exchange exchange_through(const c10::intrusive_ptr<c10d::Store>& store, int rank, int size) {
  return [=](const std::string& mine, double timeout_s) -> Result<std::vector<std::string>> {
    auto key_of = [](int r) { return fmt::format("ringfold/card/{}", r); };
    const auto until = std::chrono::steady_clock::now() + std::chrono::duration<double>(timeout_s);
    try {
      store->set(key_of(rank), std::vector<uint8_t>(mine.begin(), mine.end()));
      std::vector<std::string> all;
      for (int r = 0; r < size; ++r) {
        const auto left = std::chrono::duration_cast<milliseconds>(until - std::chrono::steady_clock::now());
        store->wait({key_of(r)}, std::max(left, milliseconds(1)));
        const auto bytes = store->get(key_of(r));
        all.emplace_back(bytes.begin(), bytes.end());
      }
      return all;
    } catch (const std::exception& error) {
      std::vector<int> missing;
      try {
        for (int r = 0; r < size; ++r) {
          if (!store->check({key_of(r)})) missing.push_back(r);
        }
      } catch (const std::exception&) {  // the store itself is gone
        missing.clear();
      }
      if (missing.empty()) return Status(Code::kIo, fmt::format("torch.distributed's store: {}", error.what()));
      return Status(Code::kTimeout,
                    fmt::format("rank{} {} of {} {} not come to torch.distributed's store within {:.3g} s",
                                missing.size() == 1 ? "" : "s", list_of(missing), size,
                                missing.size() == 1 ? "has" : "have", timeout_s));
    }
  };
}

std::string meet(c10d::Store& store, const std::string& place, int rank, int size, milliseconds timeout,
                 bool wait_all) {
  const auto until = std::chrono::steady_clock::now() + timeout;
  // Store::wait() of a FileStore knows whole seconds only.
  auto comes = [&](const std::string& key, milliseconds grace) {
    for (auto pause = milliseconds(1); !store.check({key}); pause = std::min(pause * 2, milliseconds(20))) {
      if (std::chrono::steady_clock::now() > until + grace) return false;
      std::this_thread::sleep_for(pause);
    }
    return true;
  };
  const std::string verdict_key = place + "/verdict";
  store.set(place + "/" + std::to_string(rank), std::vector<uint8_t>{1});
  std::string verdict;
  if (rank == 0) {
    std::vector<int> missing;
    for (int r = 1; r < size && (wait_all || missing.empty()); ++r) {
      if (!comes(place + "/" + std::to_string(r), milliseconds(0))) missing.push_back(r);
    }
    if (!missing.empty()) {
      verdict = fmt::format("Rank{} {} did not come within {} ms", missing.size() == 1 ? "" : "s", list_of(missing),
                            timeout.count());
    }
    store.set(verdict_key, std::vector<uint8_t>(verdict.begin(), verdict.end()));
  } else {
    if (comes(verdict_key, milliseconds(1000))) {  // rank 0 may have begun later, and its verdict is worth a moment
      const auto bytes = store.get(verdict_key);
      verdict.assign(bytes.begin(), bytes.end());
    } else {
      verdict = fmt::format("Rank 0 did not come within {} ms", timeout.count());
    }
  }
  return verdict;
}

void leave_together(c10d::Store& store, int size, const Communicator& communicator,
                    std::chrono::duration<double> patience) {
  constexpr auto kKey = "ringfold/leaving";
  const auto until = std::chrono::steady_clock::now() + patience;
  auto pause = milliseconds(1);
  try {
    for (int64_t here = store.add(kKey, 1); here < size; here = store.add(kKey, 0)) {
      if (!communicator.status().ok() || std::chrono::steady_clock::now() > until) return;
      std::this_thread::sleep_for(pause);
      pause = std::min(pause * 2, milliseconds(20));
    }
  } catch (const std::exception&) {  // whoever kept the store has left
  }
}

}  // namespace ringfold::pytorch
