// Lists for people to read.
#pragma once

#include <fmt/format.h>

#include <string>
#include <string_view>
#include <vector>

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

// "2,3" or "1-5,9".
inline std::string list_ranks(const std::vector<int>& ranks) {
  std::string text;
  for (size_t i = 0; i < ranks.size();) {
    size_t end = i + 1;
    while (end < ranks.size() && ranks[end] == ranks[end - 1] + 1) ++end;
    if (end - i < 3) end = i + 1;
    text += fmt::format(fmt::runtime(end - i > 1 ? "{}{}-{}" : "{}{}"), text.empty() ? "" : ",", ranks[i],
                        ranks[end - 1]);
    i = end;
  }
  return text;
}

}  // namespace ringfold::comm
