#include "train/checkpoint.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <span>
#include <sstream>

#include "sync/replica.h"

namespace ringfold::train {
namespace {

namespace fs = std::filesystem;
using CheckpointJson = nlohmann::ordered_json;

constexpr int64_t kReportTag = 0x636b7074;
constexpr size_t kKept = 2;

std::string folder_of(const std::string& root, size_t step) { return fmt::format("{}/step-{:08}", root, step); }
std::string file_of(int rank) { return "rank-" + std::to_string(rank); }

uint64_t hash_of(std::string_view bytes) {
  sync::ReplicaHash hash;
  hash.add(std::as_bytes(std::span(bytes.data(), bytes.size())));
  return hash.value();
}

// Writes and syncs; empty, or what went wrong.
std::string write_file(const std::string& path, std::string_view bytes) {
  const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd < 0) return fmt::format("cannot write {}: {}", path, std::strerror(errno));
  std::string error;
  while (!bytes.empty() && error.empty()) {
    const ssize_t n = ::write(fd, bytes.data(), bytes.size());
    if (n > 0) {
      bytes.remove_prefix(static_cast<size_t>(n));
    } else if (errno != EINTR) {
      error = fmt::format("cannot write {}: {}", path, std::strerror(errno));
    }
  }
  if (error.empty() && ::fsync(fd) != 0) error = fmt::format("cannot write {}: {}", path, std::strerror(errno));
  ::close(fd);
  return error;
}

void sync_folder(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return;
  (void)::fsync(fd);
  ::close(fd);
}

Result<std::string> read_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::stringstream all;
  if (in) all << in.rdbuf();
  if (!in) return Status(Code::kIo, fmt::format("cannot read {}: {}", path, std::strerror(errno)));
  return all.str();
}

// Steps of complete checkpoints, in order.
std::vector<size_t> complete(const std::string& root) {
  std::vector<size_t> steps;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(root, error)) {
    const std::string name = entry.path().filename();
    if (!name.starts_with("step-") || name.size() < 6) continue;
    if (name.find_first_not_of("0123456789", 5) != std::string::npos) continue;
    if (fs::exists(entry.path() / "manifest.json", error)) steps.push_back(std::stoull(name.substr(5)));
  }
  std::sort(steps.begin(), steps.end());
  return steps;
}

}  // namespace

Checkpointer::Checkpointer(Communicator& comm, std::string folder, Identity identity)
    : comm_(comm), folder_(std::move(folder)), identity_(std::move(identity)) {}

Checkpointer::~Checkpointer() {
  if (writer_.joinable()) writer_.join();
  if (!active_) return;  // otherwise the run has failed: calls still refer to our memory
  (void)telling_.wait_for(1);
  for (Work& work : hearing_) {
    if (!work.test()) comm_.abort("a checkpoint was given up");
    (void)work.wait();
  }
}

Status Checkpointer::begin(sync::State share, const Position& position) {
  RINGFOLD_TRY(advance(true));
  position_ = position;
  active_ = true;
  told_ = false;
  written_ = false;
  error_.clear();
  if (comm_.rank() == 0) {
    reports_.assign(static_cast<size_t>(comm_.size()), {});
    hearing_.clear();
    for (int r = 0; r < comm_.size(); ++r) {
      hearing_.push_back(comm_.recv(&reports_[static_cast<size_t>(r)], sizeof(Report), DataType::kU8, r, kReportTag,
                                    {.timeout_s = 3600}));
    }
  }
  writer_ = std::thread([this, state = std::move(share)] { write(state.serialise()); });
  return {};
}

void Checkpointer::write(std::string bytes) {
  const std::string folder = folder_of(folder_, position_.step) + ".part";
  std::error_code error;
  fs::create_directories(folder, error);
  error_ = error ? fmt::format("cannot make {}: {}", folder, error.message())
                 : write_file(folder + "/" + file_of(comm_.rank()), bytes);
  report_ = {.step = position_.step, .bytes = bytes.size(), .hash = hash_of(bytes), .ok = error_.empty()};
  written_ = true;
}

Status Checkpointer::advance(bool wait) {
  if (!active_) return {};
  if (!told_) {
    if (!wait && !written_) return {};
    writer_.join();
    telling_ = comm_.send(&report_, sizeof report_, DataType::kU8, 0, kReportTag);
    told_ = true;
  }
  if (!error_.empty()) {
    (void)telling_.wait();
    active_ = false;
    return Status(Code::kIo, "checkpoint: " + error_);
  }
  if (!wait && !telling_.test()) return {};
  RINGFOLD_TRY(telling_.wait());
  if (comm_.rank() == 0) {
    for (Work& work : hearing_) {
      if (!wait && !work.test()) return {};
      RINGFOLD_TRY(work.wait());
    }
    RINGFOLD_TRY(commit());
  }
  active_ = false;
  return {};
}

Status Checkpointer::commit() {
  const std::string folder = folder_of(folder_, position_.step), partial = folder + ".part";
  CheckpointJson files = CheckpointJson::array();
  for (int r = 0; r < comm_.size(); ++r) {
    const Report& report = reports_[static_cast<size_t>(r)];
    if (report.ok == 0 || report.step != position_.step)
      return Status(Code::kIo, fmt::format("checkpoint: rank {} could not write its share of {}", r, folder));
    files.push_back({{"name", file_of(r)}, {"bytes", report.bytes}, {"hash", fmt::format("{:016x}", report.hash)}});
  }
  const CheckpointJson manifest = {{"format", 1},
                                   {"step", position_.step},
                                   {"epoch", position_.epoch},
                                   {"steps_in_epoch", position_.in_epoch},
                                   {"ranks", comm_.size()},
                                   {"run", identity_},
                                   {"files", files}};
  if (std::string error = write_file(partial + "/manifest.json", manifest.dump(2) + "\n"); !error.empty())
    return Status(Code::kIo, "checkpoint: " + error);
  sync_folder(partial);
  std::error_code error;
  fs::remove_all(folder, error);  // of a run that came as far before, and was resumed from an earlier one
  fs::rename(partial, folder, error);
  if (error) return Status(Code::kIo, fmt::format("checkpoint: cannot make {}: {}", folder, error.message()));
  sync_folder(folder_);
  const auto steps = complete(folder_);
  for (size_t i = 0; i + kKept < steps.size(); ++i) fs::remove_all(folder_of(folder_, steps[i]), error);
  return {};
}

namespace {

Result<std::optional<Loaded>> read_checkpoint(const std::string& path, const Identity& identity) {
  auto text = read_file(path + "/manifest.json");
  if (!text.ok()) return text.status();
  Loaded loaded;
  try {
    const auto manifest = CheckpointJson::parse(*text);
    if (manifest.at("format") != 1) return Status(Code::kInvalid, path + ": written by another version");
    loaded.position = {
        .step = manifest.at("step"), .epoch = manifest.at("epoch"), .in_epoch = manifest.at("steps_in_epoch")};
    loaded.ranks = manifest.at("ranks");
    const Identity theirs = manifest.at("run").get<Identity>();
    for (const auto& [name, value] : identity) {
      const auto found = theirs.find(name);
      if (found != theirs.end() && found->second == value) continue;
      return Status(Code::kInvalid,
                    fmt::format("{} is of a run with {} {}, and this one has {}: give it the same, or "
                                "another --checkpoint folder",
                                path, name, found == theirs.end() ? "none" : found->second, value));
    }
    for (const auto& file : manifest.at("files")) {
      const std::string name = path + "/" + file.at("name").get<std::string>();
      auto bytes = read_file(name);
      if (!bytes.ok()) return bytes.status();
      if (bytes->size() != file.at("bytes") || fmt::format("{:016x}", hash_of(*bytes)) != file.at("hash")) {
        return Status(Code::kInvalid, name + " is damaged: its size or hash is not the manifest's; remove " + path +
                                          " to go on from the checkpoint before it");
      }
      auto state = sync::State::parse(*bytes);
      if (!state.ok()) return Status(Code::kInvalid, name + ": " + state.status().message());
      loaded.state.merge(std::move(*state));
    }
  } catch (const nlohmann::json::exception& e) {
    return Status(Code::kInvalid, fmt::format("{}/manifest.json is damaged: {}", path, e.what()));
  }
  return std::optional<Loaded>(std::move(loaded));
}

}  // namespace

Result<std::optional<Loaded>> load_checkpoint(Communicator& comm, const std::string& folder,
                                              const Identity& identity) {
  uint64_t step = UINT64_MAX;  // rank 0 decides
  if (comm.rank() == 0) {
    if (const auto steps = complete(folder); !steps.empty()) step = steps.back();
  }
  RINGFOLD_TRY(comm.broadcast(&step, &step, 1, DataType::kU64, 0).wait());
  if (step == UINT64_MAX) return std::optional<Loaded>();
  const std::string path = folder_of(folder, step);
  auto loaded = read_checkpoint(path, identity);
  // One that cannot go on ends all of them.
  const auto mine = static_cast<uint8_t>(loaded.status().code());
  std::vector<uint8_t> codes(static_cast<size_t>(comm.size()));
  RINGFOLD_TRY(comm.all_gather(&mine, codes.data(), 1, DataType::kU8).wait());
  for (size_t r = 0; loaded.ok() && r < codes.size(); ++r) {
    if (codes[r] != 0)
      return Status(static_cast<Code>(codes[r]),
                    fmt::format("rank {} cannot go on from {}: its own output says why", r, path));
  }
  return loaded;
}

}  // namespace ringfold::train
