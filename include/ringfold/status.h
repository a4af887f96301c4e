// Status and Result<T>: how every call reports failure. Ringfold throws nothing across its public interface.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "ringfold/types.h"

namespace ringfold {

enum class Code : uint8_t {
  kOk,
  kInvalid,      // the caller's arguments, configuration or input file; nothing was started
  kMismatch,     // ranks made calls that do not belong together
  kTimeout,      // a deadline passed and nobody is known to be dead
  kPeerLost,     // a rank's process or its connection ended, or it stopped answering
  kAborted,      // this side was told to abort, or the communicator was aborted earlier
  kUnavailable,  // a device, interface or package is missing
  kDenied,       // a peer failed to prove the shared key, or the system refused access
  kProtocol,     // bytes that no correct peer sends
  kIo,           // the system reported an error
  kInternal,     // a fault of Ringfold's own
};
RINGFOLD_API std::string_view name_of(Code code);

// What the survivors of a failed collective agree on. Equal on every rank that reports it.
struct RINGFOLD_API Verdict {
  int rank = -1;          // the culprit, as a rank of the communicator; -1 when nobody can be named
  std::string host;       // its host name
  std::string operation;  // "all_reduce", or "" when no call was in flight
  uint64_t sequence = 0;  // number of that call on the communicator, from 1
  uint32_t epoch = 0;     // epoch in which it happened
  Code code = Code::kOk;
  std::string cause;  // in words
  std::string to_string() const;
  friend bool operator==(const Verdict&, const Verdict&) = default;
};

// The outcome of a call: ok, or a code with a message that says what, where and what to do. Copying shares the
// record; an ok status is one null pointer. Immutable, so safe to share between threads.
class [[nodiscard]] RINGFOLD_API Status {
 public:
  Status() = default;
  Status(Code code, std::string message);
  explicit Status(Verdict verdict);

  bool ok() const { return !rep_; }
  explicit operator bool() const { return ok(); }
  Code code() const;
  const std::string& message() const;  // "" when ok
  const Verdict* verdict() const;      // null unless this is an agreed verdict
  std::string to_string() const;       // "timeout: ..."

 private:
  struct Rep;
  std::shared_ptr<const Rep> rep_;
};

// A value or the reason why there is none. value() on a failed result ends the program: test ok() first.
template <typename T>
class [[nodiscard]] Result {
 public:
  Result(T value) : value_(std::move(value)) {}          // NOLINT
  Result(Status status) : status_(std::move(status)) {}  // NOLINT
  bool ok() const { return value_.has_value(); }
  explicit operator bool() const { return ok(); }
  const Status& status() const { return status_; }
  T& value() & { return value_.value(); }
  const T& value() const& { return value_.value(); }
  T&& value() && { return std::move(value_).value(); }
  T& operator*() & { return *value_; }
  const T& operator*() const& { return *value_; }
  T&& operator*() && { return *std::move(value_); }
  T* operator->() { return &*value_; }
  const T* operator->() const { return &*value_; }

 private:
  std::optional<T> value_;
  Status status_;
};

}  // namespace ringfold

// Returns from the enclosing function when `expression` (a Status) is not ok.
#define RINGFOLD_TRY(expression)                                                            \
  do {                                                                                      \
    if (::ringfold::Status ringfold_try_status_ = (expression); !ringfold_try_status_.ok()) \
      return ringfold_try_status_;                                                          \
  } while (false)
