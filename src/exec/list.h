// A list of objects that carry its links: nothing is allocated, and any member can be taken out at once. An object
// has a Hook for each list that it may be in; the list owns nothing.
#pragma once

#include <cstddef>

namespace ringfold::exec {

template <typename T>
struct Hook {
  T* before = nullptr;
  T* after = nullptr;
};

template <typename T, Hook<T> T::*kHook>
class List {
 public:
  class Iterator {
   public:
    explicit Iterator(T* at) : at_(at) {}
    T* operator*() const { return at_; }
    Iterator& operator++() {
      at_ = (at_->*kHook).after;
      return *this;
    }
    friend bool operator==(const Iterator&, const Iterator&) = default;

   private:
    T* at_;
  };
  // While a loop goes on, nothing but its current member may be taken out, and that only if the loop ends there.
  Iterator begin() const { return Iterator(first_); }
  Iterator end() const { return Iterator(nullptr); }

  bool empty() const { return first_ == nullptr; }
  size_t size() const { return size_; }
  T* front() const { return first_; }

  void push_back(T* item) {
    (item->*kHook) = {last_, nullptr};
    (last_ != nullptr ? (last_->*kHook).after : first_) = item;
    last_ = item;
    ++size_;
  }
  void erase(T* item) {
    const auto [before, after] = item->*kHook;
    (before != nullptr ? (before->*kHook).after : first_) = after;
    (after != nullptr ? (after->*kHook).before : last_) = before;
    --size_;
  }
  T* pop_front() {
    T* item = first_;
    erase(item);
    return item;
  }
  void clear() {
    first_ = last_ = nullptr;
    size_ = 0;
  }

 private:
  T *first_ = nullptr, *last_ = nullptr;
  size_t size_ = 0;
};

}  // namespace ringfold::exec
