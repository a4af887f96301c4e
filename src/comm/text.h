// Joins things for people to read.
#pragma once

#include <fmt/format.h>

#include <string>
#include <string_view>

namespace ringfold::comm {

// "a, b, c" of anything that can be formatted.
template <typename Iterator>
std::string join(Iterator begin, Iterator end, std::string_view separator) {
  std::string text;
  for (auto it = begin; it != end; ++it) {
    if (it != begin) text += separator;
    text += fmt::format("{}", *it);
  }
  return text;
}
template <typename Range>
std::string join(const Range& range, std::string_view separator) {
  return join(range.begin(), range.end(), separator);
}

}  // namespace ringfold::comm
