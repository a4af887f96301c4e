// What ranks print, line by line.
#pragma once

#include <string>
#include <string_view>

namespace ringfold::cli {

// Passes on what comes from one descriptor to another with a prefix before each line, whole lines at a time so that
// ranks do not cut into each other's. An unfinished line is passed on at the end, or when it has grown too long to be
// one.
class LineStream {
 public:
  // Owns `from`; `to` is a standard stream of this process.
  LineStream(int from, int to, std::string prefix) : from_(from), to_(to), prefix_(std::move(prefix)) {}
  LineStream(LineStream&& other) noexcept;
  LineStream& operator=(LineStream&& other) noexcept;
  ~LineStream();

  int fd() const { return from_; }
  // Reads once, and only blocks on `to`. False when there is no more to come.
  bool pump();

 private:
  void pass_on(std::string_view text) const;
  int from_, to_;
  std::string prefix_, pending_;
};

}  // namespace ringfold::cli
