#include "model/override.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <charconv>

namespace ringfold::model {
namespace {

std::string_view trimmed(std::string_view text) {
  constexpr std::string_view kBlank = " \t\n\r";
  const size_t first = text.find_first_not_of(kBlank);
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(kBlank) - first + 1);
}

std::vector<std::string_view> split(std::string_view text, char separator) {
  std::vector<std::string_view> parts;
  while (true) {
    const size_t at = text.find(separator);
    parts.push_back(trimmed(text.substr(0, at)));
    if (at == std::string_view::npos) return parts;
    text.remove_prefix(at + 1);
  }
}

bool contains(const std::vector<std::string>& names, std::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

std::optional<uint64_t> parse_size(std::string_view text) {
  uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc()) return std::nullopt;
  const std::string_view unit = text.substr(static_cast<size_t>(end - text.data()));
  if (unit.empty()) return value;
  const size_t power =
      std::string_view("kmg").find(static_cast<char>(std::tolower(static_cast<unsigned char>(unit[0]))));
  if (unit.size() != 1 || power == std::string_view::npos) return std::nullopt;
  const int shift = 10 * (static_cast<int>(power) + 1);
  if (value > (kNoLimit >> shift)) return std::nullopt;
  return value << shift;
}

Status parse_range(std::string_view text, Rule& rule) {
  const auto parts = split(text, '-');
  const auto from = parse_size(parts[0]);
  const auto to = parts.size() == 2 && parts[1].empty() ? kNoLimit : parse_size(parts.back());
  if (parts.size() != 2 || !from || !to) {
    return {Code::kInvalid, fmt::format("\"{}\" is no range of sizes, such as 0-4k or 64k-", text)};
  }
  if (*from >= *to) return {Code::kInvalid, fmt::format("the range {} is empty", text)};
  rule.from = *from;
  rule.to = *to;
  return {};
}

Status parse_choice(std::string_view text, Rule& rule) {
  const auto parts = split(text, ',');
  rule.algorithm = parts[0];
  if (parts.size() == 1) return {};
  constexpr std::string_view kLanes = "lanes=";
  const std::string_view lanes = parts[1];
  if (parts.size() > 2 || !lanes.starts_with(kLanes) || lanes.size() != kLanes.size() + 1 || lanes.back() < '1' ||
      lanes.back() > '4') {
    return {Code::kInvalid, fmt::format("after \"{}\" only ,lanes=1 to ,lanes=4 can follow", parts[0])};
  }
  rule.lanes = lanes.back() - '0';
  return {};
}

Status check_algorithm(const Rule& rule, const AlgorithmsFor& algorithms_for) {
  if (rule.algorithm == kAuto) {
    if (rule.lanes == 0) return {};
    return {Code::kInvalid, "auto chooses the lanes itself"};
  }
  std::vector<std::string> names;
  for (int c = 0; c < kCollectives; ++c) {
    if (rule.collective && *rule.collective != static_cast<Collective>(c)) continue;
    for (auto& name : algorithms_for(static_cast<Collective>(c))) {
      if (!contains(names, name)) names.push_back(std::move(name));
    }
  }
  if (contains(names, rule.algorithm)) return {};
  std::string message = fmt::format("no algorithm \"{}\"", rule.algorithm);
  if (rule.collective) message += fmt::format(" for {}", name_of(*rule.collective));
  message += "; there are ";
  for (const auto& name : names) message += name + ", ";
  return {Code::kInvalid, message + "and auto"};
}

Status parse_rule(std::string_view text, const AlgorithmsFor& algorithms_for, Rule& rule) {
  const auto parts = split(text, ':');
  if (parts.size() > 3) return {Code::kInvalid, "it has more parts than collective:range:algorithm"};
  if (parts.size() > 1) {
    rule.collective = parse_collective(parts[0]);
    if (!rule.collective) return {Code::kInvalid, fmt::format("no collective \"{}\"", parts[0])};
  }
  if (parts.size() == 3) RINGFOLD_TRY(parse_range(parts[1], rule));
  RINGFOLD_TRY(parse_choice(parts.back(), rule));
  return check_algorithm(rule, algorithms_for);
}

}  // namespace

Result<std::vector<Rule>> parse_override(std::string_view text, const AlgorithmsFor& algorithms_for) {
  std::vector<Rule> rules;
  if (trimmed(text).empty()) return rules;
  for (const std::string_view part : split(text, ';')) {
    Rule& rule = rules.emplace_back();
    if (Status status = parse_rule(part, algorithms_for, rule); !status.ok()) {
      return Status(Code::kInvalid, fmt::format("RINGFOLD_ALGORITHM, rule \"{}\": {}", part, status.message()));
    }
  }
  return rules;
}

}  // namespace ringfold::model
