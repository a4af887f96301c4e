#include <fcntl.h>
#include <fmt/format.h>
#include <openssl/crypto.h>
#include <openssl/hmac.h>
#include <openssl/rand.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <filesystem>
#include <map>
#include <optional>
#include <thread>

#include "base/log.h"
#include "comm/rendezvous.h"
#include "comm/text.h"
#include "comm/wire.h"

namespace ringfold::comm {
namespace {

using base::Deadline;
constexpr std::string_view kMagic = "ringfold-rendezvous-1\n";
constexpr size_t kSealBytes = 32, kNonceBytes = 32, kMaxFile = 64 << 20;

std::string mac_of(const base::Key& key, std::string_view name, std::string_view body) {
  std::string message = fmt::format("{}{}\n{}", kMagic, name, body);
  std::array<unsigned char, EVP_MAX_MD_SIZE> mac{};
  unsigned size = 0;
  HMAC(EVP_sha256(), key.text().data(), static_cast<int>(key.text().size()),
       reinterpret_cast<const unsigned char*>(message.data()), message.size(), mac.data(), &size);
  return {reinterpret_cast<const char*>(mac.data()), kSealBytes};
}

}  // namespace

// The name is sealed, too: a record that is copied to another rank's name proves nothing.
std::string seal(const base::Key& key, std::string_view name, std::string_view body) {
  return fmt::format("{}{}{}", kMagic, mac_of(key, name, body), body);
}

std::optional<Unsealed> unseal(const base::Key& key, std::string_view name, std::string_view bytes) {
  const size_t head = kMagic.size() + kSealBytes;
  if (bytes.size() < head || !bytes.starts_with(kMagic)) return std::nullopt;
  const auto body = bytes.substr(head);
  const auto expected = mac_of(key, name, body);
  if (CRYPTO_memcmp(expected.data(), bytes.data() + kMagic.size(), kSealBytes) != 0) return Unsealed{.foreign = true};
  return Unsealed{.body = std::string(body)};
}

namespace {

class Folder {
 public:
  Folder(std::string path, const base::Key& key) : path_(std::move(path)), key_(key) {}

  Status write(const std::string& name, const std::string& body) const {
    const std::string fresh = fmt::format("{}/.{}.{}", path_, name, random_name());
    const int fd = ::open(fresh.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0) return Status(Code::kIo, fmt::format("cannot create {}: {}", fresh, std::strerror(errno)));
    const std::string bytes = seal(key_, name, body);
    size_t at = 0;
    while (at < bytes.size()) {
      const ssize_t n = ::write(fd, bytes.data() + at, bytes.size() - at);
      if (n < 0 && errno != EINTR) break;
      at += static_cast<size_t>(std::max<ssize_t>(n, 0));
    }
    const bool written = at == bytes.size() && ::fsync(fd) == 0;
    const int reason = errno;
    ::close(fd);
    if (written && ::rename(fresh.c_str(), (path_ + "/" + name).c_str()) == 0) return {};
    ::unlink(fresh.c_str());
    return Status(Code::kIo,
                  fmt::format("cannot write {}/{}: {}", path_, name, std::strerror(written ? errno : reason)));
  }

  // Missing, foreign and unfinished files are nullopt; a wrong seal is remembered for the error text.
  std::optional<std::string> read(const std::string& name) {
    const int fd = ::open((path_ + "/" + name).c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOFOLLOW);
    if (fd < 0) return std::nullopt;
    std::string bytes;
    struct stat info {};
    if (::fstat(fd, &info) == 0 && S_ISREG(info.st_mode) && info.st_size <= static_cast<off_t>(kMaxFile)) {
      bytes.resize(static_cast<size_t>(info.st_size));
      size_t at = 0;
      for (ssize_t n = 1; at < bytes.size() && n > 0; at += static_cast<size_t>(std::max<ssize_t>(n, 0))) {
        n = ::read(fd, bytes.data() + at, bytes.size() - at);
      }
      bytes.resize(at);
    }
    ::close(fd);
    auto record = unseal(key_, name, bytes);
    if (!record) return std::nullopt;
    if (record->foreign) {
      if (foreign_.empty()) log::warn("{}/{} was not written with this job's key; it is ignored", path_, name);
      foreign_ = name;
      return std::nullopt;
    }
    return std::move(record->body);
  }
  bool exists(const std::string& name) const { return ::access((path_ + "/" + name).c_str(), F_OK) == 0; }
  void remove(const std::string& name) const { ::unlink((path_ + "/" + name).c_str()); }
  const std::string& foreign() const { return foreign_; }

 private:
  std::string path_, foreign_;
  base::Key key_;
};

// Sleeps longer and longer, so that a late rank costs little, but never past the deadline.
class Backoff {
 public:
  explicit Backoff(Deadline deadline) : deadline_(deadline) {}
  bool sleep() {
    if (deadline_.passed()) return false;
    std::this_thread::sleep_for(std::min(deadline_.left(), pause_));
    pause_ = std::min<base::Duration>(pause_ * 3 / 2, std::chrono::milliseconds(200));
    return true;
  }

 private:
  Deadline deadline_;
  base::Duration pause_ = std::chrono::milliseconds(2);
};

std::string name_of_rank(int rank) { return fmt::format("rank-{}", rank); }

}  // namespace

std::string random_name() {
  std::array<unsigned char, kNonceBytes / 2> bytes{};
  if (RAND_bytes(bytes.data(), bytes.size()) != 1) std::abort();  // without random numbers there is no key either
  std::string text;
  for (auto byte : bytes) text += fmt::format("{:02x}", byte);
  return text;
}

// A rank's file: its own number, the number of rank 0 that it answers (rank 0: none), its card.
// The table: rank 0's number, then for each rank the number and the card.
Result<Roster> meet_in_directory(const std::string& folder, int rank, int size, const base::Key& key,
                                 const std::string& card, Deadline deadline) {
  const auto begin = base::Clock::now();
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error)
    return Status(Code::kIo, fmt::format("cannot create the rendezvous directory {}: {}", folder, error.message()));

  Folder files(folder, key);
  const std::string mine = random_name();
  auto write_mine = [&](std::string_view answered) {
    return files.write(name_of_rank(rank), Writer().text(mine).text(answered).number(size).text(card).take());
  };
  auto give_up = [&](const std::vector<int>& missing, std::string_view what) {
    files.remove(name_of_rank(rank));
    auto text = fmt::format("rank{} {} of {} {} {} after {:.3g} s at dir:{}", missing.size() == 1 ? "" : "s",
                            list_ranks(missing), size, missing.size() == 1 ? "has" : "have", what,
                            base::seconds_of(base::Clock::now() - begin), folder);
    if (!files.foreign().empty()) text += fmt::format("; {} was written with another key", files.foreign());
    return Status(files.foreign().empty() ? Code::kTimeout : Code::kDenied, text);
  };
  auto wrong_size = [&](int other, int theirs) {
    return Status(Code::kInvalid,
                  fmt::format("rank {} was started with {} ranks, rank {} with {}", rank, size, other, theirs));
  };
  Backoff backoff(deadline);
  RINGFOLD_TRY(write_mine(""));

  if (rank == 0) {
    std::vector<std::string> cards(static_cast<size_t>(size)), numbers(cards.size());
    cards[0] = card;
    numbers[0] = mine;
    for (;;) {
      std::vector<int> missing;
      for (int r = 1; r < size; ++r) {
        if (!numbers[r].empty()) continue;
        auto body = files.read(name_of_rank(r));
        Reader reader(body ? std::string_view(*body) : std::string_view());
        std::string number(reader.text(kNonceBytes));
        const bool fresh = reader.text(kNonceBytes) == mine;
        const int theirs = reader.number<int>();
        const auto their_card = reader.text();
        if (!body || !fresh || !reader.done()) {
          missing.push_back(r);
        } else if (theirs != size) {
          return wrong_size(r, theirs);
        } else {
          numbers[r] = number;
          cards[r] = their_card;
        }
      }
      if (missing.empty()) break;
      if (!backoff.sleep()) return give_up(missing, "not arrived");
    }
    Writer table;
    table.text(mine);
    for (int r = 0; r < size; ++r) table.text(numbers[r]).text(cards[r]);
    RINGFOLD_TRY(files.write("table", table.take()));
    return Roster{mine, std::move(cards), [files, folder] {
                    files.remove("table");
                    files.remove(name_of_rank(0));
                    ::rmdir(folder.c_str());  // only if nothing else is in it
                  }};
  }

  std::string answered;
  std::vector<int> missing;  // as far as a rank other than 0 can see: it cannot tell a stale file
  for (int r = 0; r < size; ++r) {
    if (r != rank) missing.push_back(r);
  }
  for (;;) {
    std::erase_if(missing, [&](int r) { return files.exists(name_of_rank(r)); });
    if (auto body = files.read(name_of_rank(0))) {
      Reader reader(*body);
      std::string number(reader.text(kNonceBytes));
      reader.text();
      const int theirs = reader.number<int>();
      reader.text();
      if (reader.done() && number != answered) {
        // A stale file may say anything, so another size is only an error if it stays.
        if (theirs != size && deadline.left() < std::chrono::milliseconds(300)) return wrong_size(0, theirs);
        if (theirs == size) {
          RINGFOLD_TRY(write_mine(number));
          answered = number;
        }
      }
    }
    if (auto body = files.read("table")) {
      Reader reader(*body);
      Roster roster{std::string(reader.text(kNonceBytes)), {}, {}};
      bool has_mine = false;
      for (int r = 0; r < size && reader.ok(); ++r) {
        has_mine |= reader.text(kNonceBytes) == mine && r == rank;
        roster.cards.emplace_back(reader.text());
      }
      if (reader.done() && has_mine) {
        files.remove(name_of_rank(rank));
        return roster;
      }
    }
    if (!backoff.sleep()) {
      if (missing.empty()) return give_up({0}, "not answered");
      return give_up(missing, "not arrived");
    }
  }
}

namespace {
std::string name_of_door(int rank) { return fmt::format("door-{}", rank); }
}  // namespace

// A door: the job, its size, the card of a rank.
Status leave_in_directory(const std::string& folder, int rank, int size, const base::Key& key, const std::string& job,
                          const std::string& card) {
  return Folder(folder, key).write(name_of_door(rank), Writer().text(job).number(size).text(card).take());
}

void remove_from_directory(const std::string& folder, int rank, const base::Key& key) {
  Folder(folder, key).remove(name_of_door(rank));
}

Result<Roster> find_in_directory(const std::string& folder, int rank, int size, const base::Key& key,
                                 Deadline deadline) {
  Folder files(folder, key);
  Backoff backoff(deadline);
  for (;;) {
    // Where doors of several jobs stand, that of most of them.
    std::map<std::string, std::vector<std::string>> jobs;
    std::map<std::string, int> doors;
    for (int r = 0; r < size; ++r) {
      const auto body = r == rank ? std::nullopt : files.read(name_of_door(r));
      Reader reader(body ? std::string_view(*body) : std::string_view());
      const std::string job(reader.text(kNonceBytes));
      const int theirs = reader.number<int>();
      const std::string their_card(reader.text());
      if (!body || !reader.done() || theirs != size) continue;
      auto& cards = jobs[job];
      cards.resize(static_cast<size_t>(size));
      cards[static_cast<size_t>(r)] = their_card;
      ++doors[job];
    }
    const auto most = std::max_element(doors.begin(), doors.end(),
                                       [](const auto& a, const auto& b) { return a.second < b.second; });
    if (most != doors.end()) return Roster{most->first, jobs[most->first], {}};
    if (!backoff.sleep()) {
      return Status(
          Code::kTimeout,
          fmt::format("rank {} of {} comes back, and no rank of a job that takes it in has left its card at "
                      "dir:{}: has the job ended?",
                      rank, size, folder));
    }
  }
}

}  // namespace ringfold::comm
