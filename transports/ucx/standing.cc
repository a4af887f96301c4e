#include "transports/ucx/standing.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/random.h>
#include <unistd.h>

#include <atomic>

namespace ringfold::transport::ucx {
namespace {

std::atomic_ref<uint64_t> word_of(const base::Mapping& page) {
  return std::atomic_ref<uint64_t>(*reinterpret_cast<uint64_t*>(page.data()));
}

}  // namespace

Standing Standing::mine() {
  Standing s;
  s.file_ = base::Fd(memfd_create("ringfold-standing", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!s.file_.ok() || ftruncate(s.file_.get(), sizeof s.value_) != 0 ||
      fcntl(s.file_.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0 ||
      getrandom(&s.value_, sizeof s.value_, 0) != sizeof s.value_) {
    return s;
  }
  s.page_ = base::Mapping::of(s.file_.get(), 0, sizeof s.value_, true);
  if (s.known()) word_of(s.page_).store(s.value_, std::memory_order_relaxed);
  return s;
}

Standing::Place Standing::place() const { return {::getpid(), known() ? file_.get() : -1, value_}; }

Standing Standing::of(const Place& place) {
  Standing s;
  s.value_ = place.value;
  const base::Fd file(
      ::open(fmt::format("/proc/{}/fd/{}", place.pid, place.fd).c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!file.ok() || lseek(file.get(), 0, SEEK_END) != sizeof s.value_) return s;
  s.page_ = base::Mapping::of(file.get(), 0, sizeof s.value_, false);
  if (s.known() && !s.holds()) s.page_ = {};
  return s;
}

bool Standing::holds() const {
  std::atomic_thread_fence(std::memory_order_acquire);
  return word_of(page_).load(std::memory_order_relaxed) == value_;
}

void Standing::end() {
  if (!known()) return;
  word_of(page_).store(0, std::memory_order_seq_cst);
  std::atomic_thread_fence(std::memory_order_release);
}

}  // namespace ringfold::transport::ucx
