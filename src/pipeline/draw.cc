// A timing as text. Time is cut into columns as narrow as the shortest action needs for its name.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "ringfold/pipeline.h"

namespace ringfold::pipeline {
namespace {

// "F12", "B3b": the letter of its kind, the micro-batch, and the chunk if it is not the first.
std::string name_of_cell(const Action& action, const std::vector<int>& chunk_of) {
  constexpr char kLetters[] = {'F', 'B', 'W', 'B'};
  const int chunk = chunk_of[static_cast<size_t>(action.stage)];
  std::string text = fmt::format("{}{}", kLetters[static_cast<size_t>(action.kind)], action.micro_batch);
  if (chunk > 0) text += chunk < 26 ? std::string(1, static_cast<char>('a' + chunk)) : fmt::format("/{}", chunk);
  return text;
}

std::string_view color_of(ActionKind kind) {
  constexpr std::string_view kColors[] = {"\033[44;97m", "\033[42;30m", "\033[43;30m", "\033[42;30m"};
  return kColors[static_cast<size_t>(kind)];
}

}  // namespace

std::string draw(const Schedule& schedule, const Timing& timing, size_t width, bool color) {
  std::vector<int> chunk_of;
  for (int s = 0; s < schedule.stages(); ++s) chunk_of.push_back(schedule.chunk_of(s));
  // One column of text is `unit` of time.
  double unit = std::numeric_limits<double>::infinity();
  for (const Span& span : timing.spans) {
    const double length = span.end - span.begin;
    if (length <= 0) continue;
    unit = std::min(unit, length / static_cast<double>(name_of_cell(span.action, chunk_of).size() + 1));
  }
  if (!std::isfinite(unit)) unit = 1;
  std::vector<std::string> lines(static_cast<size_t>(schedule.ranks()));
  std::vector<size_t> columns(lines.size(), 0);
  for (const Span& span : timing.spans) {
    const auto r = static_cast<size_t>(span.rank);
    const auto begin = static_cast<size_t>(std::llround(span.begin / unit));
    const auto end = static_cast<size_t>(std::llround(span.end / unit));
    if (width > 0 && end > width) continue;
    lines[r].append(begin - std::min(begin, columns[r]), ' ');
    std::string cell = name_of_cell(span.action, chunk_of);
    cell.resize(std::max(end, begin + 1) - begin - 1, span.action.kind == ActionKind::kBackward ? '-' : ' ');
    lines[r] += color ? fmt::format("{}{}\033[0m ", color_of(span.action.kind), cell) : cell + " ";
    columns[r] = std::max(end, begin + 1);
  }
  std::string text;
  const size_t digits = std::to_string(schedule.ranks() - 1).size();
  for (size_t r = 0; r < lines.size(); ++r) {
    while (!lines[r].empty() && lines[r].back() == ' ') lines[r].pop_back();
    const bool cut = width > 0 && static_cast<size_t>(std::llround(timing.makespan / unit)) > width;
    text += fmt::format("rank {:>{}} |{}{}\n", r, digits, lines[r], cut ? " ..." : "");
  }
  return text;
}

}  // namespace ringfold::pipeline
