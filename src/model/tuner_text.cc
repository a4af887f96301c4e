// Tuners as text: for people, and for the other ranks.
#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "model/tuner.h"

namespace ringfold::model {
namespace {

using Json = nlohmann::json;

constexpr int kVersion = 1;
constexpr int kMostLanes = 4;

bool read(const Json& json, Range& range) {
  if (!json.is_array() || json.size() != 5) return false;
  if (!json[0].is_number_unsigned() || !json[1].is_string() || !json[2].is_number_unsigned() ||
      !json[3].is_boolean() || !json[4].is_string()) {
    return false;
  }
  if (json[2].get<uint64_t>() < 1 || json[2].get<uint64_t>() > kMostLanes) return false;
  range = {json[0].get<uint64_t>(), json[1].get<std::string>(), json[2].get<int>(), json[3].get<bool>(),
           json[4].get<std::string>()};
  return !range.algorithm.empty();
}

bool read(const Json& json, Table& table) {
  if (!json.is_object()) return false;
  const auto name = json.find("collective"), ranges = json.find("ranges"), seconds = json.find("seconds");
  if (name == json.end() || ranges == json.end() || seconds == json.end()) return false;
  if (!name->is_string() || !ranges->is_array() || !seconds->is_array()) return false;
  const auto collective = parse_collective(name->get<std::string>());
  if (!collective || ranges->empty() || seconds->size() < 2 || seconds->size() > kGridSizes) return false;
  table.collective = *collective;
  for (const Json& item : *ranges) {
    Range range;
    if (!read(item, range)) return false;
    if (table.ranges.empty() ? range.from != 0 : range.from <= table.ranges.back().from) return false;
    table.ranges.push_back(std::move(range));
  }
  for (const Json& item : *seconds) {
    if (!item.is_number() || !(item.get<double>() >= 0)) return false;
    table.seconds.push_back(item.get<double>());
  }
  return true;
}

std::string text_of(const Range& range, uint64_t end) {
  const std::string sizes =
      end == kNoLimit ? "from " + bytes_text(range.from) : bytes_text(range.from) + " to " + bytes_text(end);
  return fmt::format("  {:<22} {}{}{}: {}\n", sizes, range.algorithm,
                     range.lanes > 1 ? fmt::format(", {} lanes", range.lanes) : "", range.forced ? " (as told)" : "",
                     range.reason);
}

}  // namespace

std::string Tuner::to_string() const {
  std::string text;
  for (const Table& table : tables_) {
    text += fmt::format("{}\n", name_of(table.collective));
    for (size_t r = 0; r < table.ranges.size(); ++r) {
      text += text_of(table.ranges[r], r + 1 < table.ranges.size() ? table.ranges[r + 1].from : kNoLimit);
    }
  }
  return text;
}

std::string Tuner::to_text() const {
  Json tables = Json::array();
  for (const Table& table : tables_) {
    Json ranges = Json::array();
    for (const Range& r : table.ranges) ranges.push_back({r.from, r.algorithm, r.lanes, r.forced, r.reason});
    tables.push_back({{"collective", name_of(table.collective)}, {"ranges", ranges}, {"seconds", table.seconds}});
  }
  const Json json = {{"version", kVersion}, {"tables", tables}};
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

Result<Tuner> Tuner::from_text(std::string_view text) {
  const Status bad(Code::kProtocol, "not the text of a tuner of this version");
  const Json json = Json::parse(text, nullptr, false);
  if (!json.is_object() || json.value("version", Json()) != Json(kVersion)) return bad;
  const auto tables = json.find("tables");
  if (tables == json.end() || !tables->is_array()) return bad;
  Tuner tuner;
  for (const Json& item : *tables) {
    Table table;
    if (!read(item, table) || tuner.table(table.collective) != nullptr) return bad;
    tuner.tables_.push_back(std::move(table));
  }
  return tuner;
}

}  // namespace ringfold::model
