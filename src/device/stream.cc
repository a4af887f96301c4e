#include "device/stream.h"

#include <map>
#include <mutex>
#include <new>
#include <utility>

#include "base/log.h"

namespace ringfold::device {

Result<bool> is_captured(Context context, Stream stream) {
  const Current current(context);
  RINGFOLD_TRY(current.status());
  int capturing = 0;
  RINGFOLD_TRY(check(driver()->stream_is_capturing(stream, &capturing), "cuStreamIsCapturing"));
  return capturing != 0;
}

// ---- moments ----

Moment::Moment(Moment&& other) noexcept : context_(other.context_), event_(std::exchange(other.event_, nullptr)) {}

Moment& Moment::operator=(Moment&& other) noexcept {
  std::swap(context_, other.context_);
  std::swap(event_, other.event_);
  return *this;
}

Moment::~Moment() {
  if (event_ == nullptr) return;
  const Current current(context_);
  driver()->event_destroy(event_);
}

Result<Moment> Moment::now(Context context, Stream stream) {
  auto captured = is_captured(context, stream);
  if (!captured.ok()) return captured.status();
  if (*captured) {
    return Status(
        Code::kInvalid,
        "the stream is being captured into a graph, which would not replay what the host does: make this call "
        "outside of the capture");
  }
  const Current current(context);
  RINGFOLD_TRY(current.status());
  Moment moment;
  moment.context_ = context;
  RINGFOLD_TRY(check(driver()->event_create(&moment.event_, kEventWithoutTimes), "cuEventCreate"));
  RINGFOLD_TRY(check(driver()->event_record(moment.event_, stream), "cuEventRecord"));
  return moment;
}

Result<bool> Moment::over() const {
  if (event_ == nullptr) return true;
  const Current current(context_);
  RINGFOLD_TRY(current.status());
  const int error = driver()->event_query(event_);
  if (error == kNotReady) return false;
  RINGFOLD_TRY(check(error, "cuEventQuery"));
  return true;
}

// ---- copies ----

Result<std::unique_ptr<OwnStream>> OwnStream::make(Context context) {
  const Current current(context);
  RINGFOLD_TRY(current.status());
  Stream stream = nullptr;
  // Not held up by the default stream, which a user may have made wait for us.
  RINGFOLD_TRY(check(driver()->stream_create(&stream, kNonBlockingStream), "cuStreamCreate"));
  return std::unique_ptr<OwnStream>(new OwnStream(context, stream));
}

OwnStream::~OwnStream() {
  const Current current(context_);
  driver()->stream_destroy(stream_);
}

Status OwnStream::wait_for(const Moment& moment) {
  if (moment.event() == nullptr) return {};
  const Current current(context_);
  RINGFOLD_TRY(current.status());
  return check(driver()->stream_wait_event(stream_, moment.event(), 0), "cuStreamWaitEvent");
}

Status copy_to_host(Context context, Stream stream, std::byte* to, const std::byte* device, size_t bytes) {
  const Current current(context);
  RINGFOLD_TRY(current.status());
  return check(driver()->copy_to_host(to, reinterpret_cast<Address>(device), bytes, stream), "cuMemcpyDtoHAsync");
}

Status OwnStream::to_device(std::byte* device, const std::byte* from, size_t bytes) {
  const Current current(context_);
  RINGFOLD_TRY(current.status());
  return check(driver()->copy_to_device(reinterpret_cast<Address>(device), from, bytes, stream_),
               "cuMemcpyHtoDAsync");
}

Status copy_on_devices(Context context, Stream stream, Address to, Address from, size_t bytes) {
  const Current current(context);
  RINGFOLD_TRY(current.status());
  return check(driver()->copy_on_devices(to, from, bytes, stream), "cuMemcpyDtoDAsync");
}

Status OwnStream::wait_until(Address word, uint32_t value) {
  const Current current(context_);
  RINGFOLD_TRY(current.status());
  return check(driver()->stream_wait_value(stream_, word, value, kWaitAtLeast), "cuStreamWaitValue32");
}

Status OwnStream::zero(Address memory, size_t bytes) {
  const Current current(context_);
  RINGFOLD_TRY(current.status());
  return check(driver()->memory_set_on(memory, 0, bytes, stream_), "cuMemsetD8Async");
}

Status OwnStream::set(Address word, uint32_t value) {
  const Current current(context_);
  RINGFOLD_TRY(current.status());
  return check(driver()->stream_write_value(stream_, word, value, 0), "cuStreamWriteValue32");
}

namespace {
// What streams are to call, by number. A driver that fails never calls, and one may call late, so it belongs to
// neither a stream nor the driver; never destroyed.
struct Wakes {
  std::mutex mutex;
  std::map<uintptr_t, std::function<void()>> waiting;
  uintptr_t last = 0;

  uintptr_t add(std::function<void()> wake) {
    const std::lock_guard lock(mutex);
    waiting.emplace(++last, std::move(wake));
    return last;
  }
  std::function<void()> take(uintptr_t number) {
    const std::lock_guard lock(mutex);
    return std::move(waiting.extract(number).mapped());
  }
};
Wakes& wakes() {
  static Wakes* const kWakes = new Wakes;
  return *kWakes;
}
}  // namespace

Result<Moment> OwnStream::mark(std::function<void()> wake) {
  auto moment = Moment::now(context_, stream_);
  if (!moment.ok()) return moment.status();
  const Current current(context_);
  const uintptr_t number = wakes().add(std::move(wake));
  const int error = driver()->launch_host_function(
      stream_, [](void* user) { wakes().take(reinterpret_cast<uintptr_t>(user))(); },
      reinterpret_cast<void*>(number));
  if (error != kSuccess) {
    wakes().take(number);
    return check(error, "cuLaunchHostFunc");
  }
  return moment;
}

// ---- gates ----

// All words there are: pages of pinned memory, and those words that no gate has.
struct Words {
  std::mutex mutex;
  std::vector<Pinned> pages;
  std::vector<Gate::Word*> free;

  Result<Gate::Word*> take(Context context) {
    constexpr size_t kPage = 4096;
    const std::lock_guard lock(mutex);
    if (free.empty()) {
      auto page = pin(context, kPage);
      if (!page.ok()) return page.status();
      for (size_t at = 0; at < kPage; at += sizeof(Gate::Word)) free.push_back(new (page->get() + at) Gate::Word);
      pages.push_back(*std::move(page));
    }
    Gate::Word* word = free.back();
    free.pop_back();
    return word;
  }
  void give(Gate::Word* word) {
    const std::lock_guard lock(mutex);
    free.push_back(word);
  }
};

namespace {
// Never destroyed: streams may still look at the words.
Words& words() {
  static Words* const kWords = new Words;
  return *kWords;
}

struct HostWait {
  std::atomic<uint32_t>* word;
  uint32_t value;
};

// A word comes round after 2^32 calls; who waits is never so far behind.
bool reached(uint32_t word, uint32_t value) { return static_cast<int32_t>(word - value) >= 0; }

void wait_on_host(void* user) {
  const std::unique_ptr<HostWait> wait(static_cast<HostWait*>(user));
  for (uint32_t seen; !reached(seen = wait->word->load(std::memory_order_acquire), wait->value);)
    wait->word->wait(seen);
}
}  // namespace

Gate& Gate::operator=(Gate&& other) noexcept {
  std::swap(word_, other.word_);
  std::swap(value_, other.value_);
  return *this;
}

Result<Gate> Gate::hold(Context context, Stream stream) {
  static_assert(sizeof(Word) == sizeof(uint32_t));
  const Current current(context);
  RINGFOLD_TRY(current.status());
  auto word = words().take(context);
  if (!word.ok()) return word.status();
  Gate gate;  // from here on it opens in any case
  gate.word_ = *word;
  gate.value_ = gate.word_->value.load(std::memory_order_relaxed) + 1;
  int error = kNotSupported;
  if (driver()->stream_wait_value != nullptr) {
    Address address = 0;
    RINGFOLD_TRY(check(driver()->host_address(&address, gate.word_, 0), "cuMemHostGetDevicePointer"));
    error = driver()->stream_wait_value(stream, address, gate.value_, kWaitAtLeast);
    if (error != kNotSupported && error != kNotPermitted) RINGFOLD_TRY(check(error, "cuStreamWaitValue32"));
  }
  if (error != kSuccess) {
    auto wait = std::make_unique<HostWait>(HostWait{&gate.word_->value, gate.value_});
    RINGFOLD_TRY(check(driver()->launch_host_function(stream, wait_on_host, wait.get()), "cuLaunchHostFunc"));
    wait.release();
  }
  return gate;
}

void Gate::open() {
  if (word_ == nullptr) return;
  word_->value.store(value_, std::memory_order_release);
  word_->value.notify_all();
  words().give(std::exchange(word_, nullptr));
}

Status Gate::open_after(OwnStream& stream) {
  if (word_ == nullptr) return {};
  const Current current(stream.context());
  RINGFOLD_TRY(current.status());
  Address address = 0;
  RINGFOLD_TRY(check(driver()->host_address(&address, word_, 0), "cuMemHostGetDevicePointer"));
  return stream.set(address, value_);
}

Result<Context> context_of(Stream stream) {
  // CU_STREAM_LEGACY and CU_STREAM_PER_THREAD are no pointers.
  if (reinterpret_cast<uintptr_t>(stream) <= 2) return current_context();
  Context context = nullptr;
  RINGFOLD_TRY(check(driver()->stream_context(stream, &context), "cuStreamGetCtx"));
  return context;
}

}  // namespace ringfold::device
