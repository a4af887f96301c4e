// `ringfold pipeline`: pipeline schedules as pictures and figures, beside the formulas that they should meet.
#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <nlohmann/json.hpp>

#include "ringfold/pipeline.h"
#include "tools/cli/cli.h"

namespace ringfold::cli {
namespace {

using namespace pipeline;

int pipeline_usage(const std::string& text) {
  fmt::print(stderr, "ringfold pipeline: {}\n", text);
  return kExitUsage;
}

// "1,1.5,1": F, B and W.
bool parse_times(std::string_view text, Times* times) {
  std::array<double*, 3> into = {&times->forward, &times->backward_input, &times->backward_weight};
  for (size_t k = 0; k < into.size(); ++k) {
    const auto comma = std::min(text.find(','), text.size());
    const auto [end, error] = std::from_chars(text.data(), text.data() + comma, *into[k]);
    if (error != std::errc() || end != text.data() + comma || !std::isfinite(*into[k]) || *into[k] < 0) return false;
    if ((k + 1 < into.size()) != (comma < text.size())) return false;
    text.remove_prefix(std::min(comma + 1, text.size()));
  }
  return times->work() > 0;
}

struct Row {
  Recipe recipe;
  Shape shape;
  Schedule schedule;
  Timing timing;
  int peak = 0;                  // of the busiest rank, in activations of a stage
  std::optional<double> bubble;  // by the formula, as is
  std::optional<int> formula_peak;
  Status refused;  // the schedule does not take the shape

  double ranks_worth(int activations) const { return static_cast<double>(activations) / shape.chunks; }
};

Result<Row> row_of(const Recipe& recipe, const PipelineOptions& options, const Times& times) {
  Row row;
  row.recipe = recipe;
  row.shape = {options.ranks, options.micro_batches, options.chunks > 0 ? options.chunks : recipe.chunks};
  auto schedule = make(recipe.name, row.shape);
  if (!schedule.ok()) return schedule.status();
  row.schedule = *std::move(schedule);
  CheckReport report;
  RINGFOLD_TRY(check(row.schedule, {}, &report));
  auto timing = simulate(row.schedule, times);
  if (!timing.ok()) return timing.status();
  row.timing = *std::move(timing);
  row.peak = *std::max_element(report.peak.begin(), report.peak.end());
  if (times.transfer == 0) row.bubble = recipe.bubble(row.shape, times);
  for (int r = 0; r < options.ranks; ++r) {
    const auto peak = recipe.peak(row.shape, r);
    if (peak) row.formula_peak = std::max(row.formula_peak.value_or(0), *peak);
  }
  return row;
}

std::string number(double value) { return fmt::format("{:.4g}", std::abs(value) < 1e-12 ? 0 : value); }

void print_table(const std::vector<Row>& rows, const Times& times) {
  fmt::print("\n{:<18}{:>9}{:>9}{:>8}  {:<34}{:>12}  {}\n", "", "step", "bubble", "idle", "formula of the bubble",
             "activations", "formula");
  for (const Row& row : rows) {
    if (!row.refused.ok()) {
      fmt::print("{:<18}  {}\n", row.recipe.name, row.refused.message());
      continue;
    }
    const bool zero = row.recipe.bubble_text.starts_with('0') && row.bubble;
    const std::string bubble = zero ? std::string(row.recipe.bubble_text)
                                    : fmt::format("{} = {}", row.recipe.bubble_text,
                                                  row.bubble ? number(*row.bubble) : "(not for this shape)");
    const std::string peak =
        fmt::format("{} = {}", row.recipe.peak_text,
                    row.formula_peak ? number(row.ranks_worth(*row.formula_peak)) : "(not here)");
    fmt::print("{:<18}{:>9}{:>9}{:>7.1f}%  {:<34}{:>12}  {}\n", row.recipe.name, number(row.timing.step),
               number(row.timing.bubble), 100 * row.timing.idle, bubble, number(row.ranks_worth(row.peak)), peak);
  }
  fmt::print(
      "\nStep: time of one in a row of many. Bubble: what a rank idles of it. Activations: most that a rank holds, "
      "in "
      "those of all\nits stages for one micro-batch. F {}, B {}, W {} per micro-batch and rank{}.\n",
      number(times.forward), number(times.backward_input), number(times.backward_weight),
      times.transfer > 0 ? fmt::format(", transfers {}", number(times.transfer)) : "");
}

nlohmann::json json_of(const Row& row, const Times& times) {
  nlohmann::json object = {{"schedule", row.recipe.name},
                           {"ranks", row.shape.ranks},
                           {"micro_batches", row.shape.micro_batches},
                           {"chunks", row.shape.chunks}};
  if (!row.refused.ok()) {
    object["refused"] = row.refused.message();
    return object;
  }
  object["times"] = {{"forward", times.forward},
                     {"backward_input", times.backward_input},
                     {"backward_weight", times.backward_weight},
                     {"transfer", times.transfer}};
  object["step"] = row.timing.step;
  object["makespan"] = row.timing.makespan;
  object["bubble"] = row.timing.bubble;
  object["idle"] = row.timing.idle;
  object["bubble_formula"] = row.bubble ? nlohmann::json(*row.bubble) : nlohmann::json();
  object["bubble_formula_text"] = row.recipe.bubble_text;
  object["peak_activations"] = row.ranks_worth(row.peak);
  object["peak_activations_formula"] =
      row.formula_peak ? nlohmann::json(row.ranks_worth(*row.formula_peak)) : nlohmann::json();
  object["peak_activations_formula_text"] = row.recipe.peak_text;
  for (const auto& list : row.schedule.actions) {
    auto actions = nlohmann::json::array();
    for (const Action& a : list) {
      actions.push_back({{"kind", name_of(a.kind)},
                         {"stage", a.stage},
                         {"chunk", row.schedule.chunk_of(a.stage)},
                         {"micro_batch", a.micro_batch}});
    }
    object["actions"].push_back(std::move(actions));
  }
  return object;
}

size_t terminal_width() {
  winsize size{};
  return ::ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 40 ? size.ws_col - 16u : 0;
}

}  // namespace

int pipeline(const PipelineOptions& options) {
  Times times;
  if (!parse_times(options.times, &times))
    return pipeline_usage(
        fmt::format("--times {}: it takes three times with commas, F,B,W, as 1,1,1 or 1,1.2,0.8", options.times));
  if (!(options.transfer >= 0)) return pipeline_usage("--transfer: it takes a time of 0 or more");
  times.transfer = options.transfer;
  const bool all = options.schedule.empty();
  if (!options.trace.empty() && all) return pipeline_usage("--trace draws one schedule: name it with --schedule");
  std::vector<Row> rows;
  for (const Recipe& recipe : recipes()) {
    if (!all && recipe.name != options.schedule) continue;
    auto row = row_of(recipe, options, times);
    if (!row.ok() && !all) return pipeline_usage(row.status().message());
    if (row.ok()) {
      rows.push_back(*std::move(row));
    } else {
      Row refused;
      refused.recipe = recipe;
      refused.shape = {options.ranks, options.micro_batches, options.chunks > 0 ? options.chunks : recipe.chunks};
      refused.refused = row.status();
      rows.push_back(std::move(refused));
    }
  }
  if (rows.empty()) return pipeline_usage(find_recipe(options.schedule).status().message());
  if (!options.trace.empty() && !write_file(options.trace, chrome_trace(rows[0].schedule, rows[0].timing, 1000)))
    return kExitEnvironment;
  if (options.json) {
    auto array = nlohmann::json::array();
    for (const Row& row : rows) array.push_back(json_of(row, times));
    fmt::print("{}\n", array.dump(2));
    return kExitOk;
  }
  const bool terminal = ::isatty(STDOUT_FILENO) != 0;
  fmt::print(
      "{} ranks, {} micro-batches. F forward, B backward (input), W backward (weights), B--- both; F0b: chunk b\n",
      options.ranks, options.micro_batches);
  for (const Row& row : rows) {
    fmt::print("\n{}: {}\n", row.recipe.name, row.recipe.summary);
    if (row.refused.ok()) {
      fmt::print("{}", draw(row.schedule, row.timing, terminal ? terminal_width() : 0, terminal));
    } else {
      fmt::print("  {}\n", row.refused.message());
    }
  }
  print_table(rows, times);
  return kExitOk;
}

}  // namespace ringfold::cli
