// What `ringfold doctor` prints, line by line, and the count of it.
#pragma once

#include <fmt/format.h>

#include <cstdio>
#include <string_view>

#include "tools/cli/cli.h"

namespace ringfold::cli {

class Findings {
 public:
  void ok(std::string_view what, std::string_view found) { line("OK", what, found, ""); }
  void warn(std::string_view what, std::string_view found, std::string_view mend) {
    ++warnings_;
    line("WARN", what, found, mend);
  }
  void fail(std::string_view what, std::string_view found, std::string_view mend) {
    ++failures_;
    line("FAIL", what, found, mend);
  }
  int finish() const {
    fmt::print("{} failure{}, {} warning{}\n", failures_, failures_ == 1 ? "" : "s", warnings_,
               warnings_ == 1 ? "" : "s");
    return failures_ > 0 ? kExitFailed : kExitOk;
  }

 private:
  static void line(std::string_view grade, std::string_view what, std::string_view found, std::string_view mend) {
    fmt::print("{:<5} {:<16} {}\n", grade, what, found);
    if (!mend.empty()) fmt::print("{:<22} mend: {}\n", "", mend);
    std::fflush(stdout);
  }
  int failures_ = 0, warnings_ = 0;
};

}  // namespace ringfold::cli
