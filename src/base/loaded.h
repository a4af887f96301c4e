// A shared library that is loaded at run time, so that programs work where it is missing.
#pragma once

#include <dlfcn.h>

#include <string>
#include <type_traits>

namespace ringfold::base {

// Never closed: it may have loaded drivers, and threads of theirs may run.
class Loaded {
 public:
  explicit Loaded(const char* file) : handle_(::dlopen(file, RTLD_NOW | RTLD_LOCAL)) {
    if (handle_ == nullptr) why_ = ::dlerror();
  }
  bool ok() const { return handle_ != nullptr; }
  const std::string& why() const { return why_; }  // it is not ok()

  // Sets `function`, a pointer, to what the library or one that it needs has under this name; null: nothing.
  template <typename Function>
  void find_if_there(Function*& function, const char* name) const {
    function = reinterpret_cast<Function*>(::dlsym(handle_, name));
  }
  // The same, where it must be there.
  template <typename Function>
  void find(Function*& function, const char* name) {
    find_if_there(function, name);
    if (function == nullptr && missing_.empty()) missing_ = name;
  }
  // The first that find() did not find; "": none.
  const std::string& missing() const { return missing_; }

 private:
  void* handle_;
  std::string why_, missing_;
};

}  // namespace ringfold::base
