// What the functions of ringfold.h share: handles, the failure of a thread, and the way from C values to C++ ones.
#pragma once

#include <algorithm>
#include <cstring>
#include <initializer_list>
#include <new>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

#include "ringfold/ringfold.h"
#include "ringfold/ringfold.hpp"

struct ringfold_comm {
  ringfold::Communicator comm;
};
struct ringfold_work {
  ringfold::Work work;
};
struct ringfold_persistent {
  ringfold::Persistent call;
};

namespace ringfold::capi {

// Keeps `status` as the thread's last failure, and returns its code; ok leaves what is kept alone.
ringfold_code finish(const Status& status) noexcept;
ringfold_code no_memory() noexcept;   // the same for a failure that cannot afford a message
ringfold_code unexpected() noexcept;  // of the exception that is being handled

Status invalid(std::string_view function, std::string_view what);

// An argument that must not be NULL.
struct Required {
  template <typename T>
  Required(const char* argument, T* value) : name(argument), missing(value == nullptr) {}
  const char* name;
  bool missing;
};

// A function of the interface: its body, which returns a Status, runs if all arguments are there. No exception
// leaves.
template <typename Body>
ringfold_code guarded(const char* function, std::initializer_list<Required> arguments, const Body& body) noexcept {
  try {
    for (const Required& argument : arguments) {
      if (argument.missing) return finish(invalid(function, std::string(argument.name) + " is NULL"));
    }
    return finish(body());
  } catch (const std::bad_alloc&) {
    return no_memory();
  } catch (...) {
    return unexpected();
  }
}

// So that a result is NULL also after a failure.
template <typename T>
void clear(T** result) noexcept {
  if (result != nullptr) *result = nullptr;
}

template <typename Handle>
void destroy(Handle* handle) noexcept {
  guarded("", {}, [&] {
    delete handle;
    return Status();
  });
}

// ---- arguments ----
Status to_type(ringfold_type value, DataType* type);
Status to_op(ringfold_op value, double scale, ReduceOp* op);
Status to_collective(ringfold_collective value, Collective* collective);
Status to_codec(const ringfold_codec& value, Codec* codec);
ringfold_codec from_codec(const Codec& codec);
Status to_options(const ringfold_options* value, Options* options);

// `scale` is the factor of RINGFOLD_SCALED_SUM.
Status to_call_options(const ringfold_call_options* value, CallOptions* options, double* scale);

// `value` as this library knows it: members that the caller's header has not are as in `defaults`; members that this
// library does not know must be zero.
template <typename T>
Status read_struct(const char* name, const T* value, T* known) {
  if (value == nullptr) return {};
  const size_t size = value->struct_size;
  if (size < sizeof(size_t) || size > (1 << 16)) {
    return Status(Code::kInvalid, std::string(name) + ".struct_size is " + std::to_string(size) +
                                      ", which no version of ringfold.h has: begin with the structure's _INIT macro");
  }
  const char* bytes = reinterpret_cast<const char*>(value);
  for (size_t i = sizeof(T); i < size; ++i) {
    if (bytes[i] != 0) {
      return Status(Code::kInvalid, std::string(name) + " has a member that is set and that this libringfold (" +
                                        version() + ") does not know: it is older than the header");
    }
  }
  std::memcpy(static_cast<void*>(known), value, std::min(size, sizeof(T)));
  return {};
}

// The other direction: fills what the caller's header knows of `result`.
template <typename T>
Status write_struct(const char* name, const T& result, T* value) {
  const size_t size = value == nullptr ? 0 : value->struct_size;
  if (size < sizeof(size_t) || size > (1 << 16)) {
    return Status(Code::kInvalid,
                  std::string(name) + " is NULL or has no struct_size: begin with the structure's _INIT macro");
  }
  std::memset(static_cast<void*>(value), 0, size);
  std::memcpy(static_cast<void*>(value), &result, std::min(size, sizeof(T)));
  value->struct_size = size;
  return {};
}

// ---- results ----
Status give_text(std::string_view text, char** out);
Status give_bytes(std::string_view bytes, void** out, size_t* size);

template <typename T>
Status give_array(std::span<const T> values, T** out) {  // NULL: there are none
  if (values.empty()) return {};
  size_t bytes = 0;
  void* copy = nullptr;
  RINGFOLD_TRY(give_bytes({reinterpret_cast<const char*>(values.data()), values.size_bytes()}, &copy, &bytes));
  *out = static_cast<T*>(copy);
  return {};
}

}  // namespace ringfold::capi
