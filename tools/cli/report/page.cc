#include "tools/cli/report/page.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "ringfold/pipeline.h"
#include "ringfold/version.h"

namespace ringfold::cli {
namespace {

constexpr std::string_view kStyle = R"(
:root { color-scheme: light dark; --ink: #1d2733; --soft: #5b6875; --line: #dfe4e9; --card: #ffffff; --ground: #f4f6f8; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6ebf0; --soft: #9aa7b4; --line: #33404d; --card: #1b232b; --ground: #12181e; --bad: #ff8a80; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 15px/1.5 system-ui, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 28px 20px 48px; }
h1 { font-size: 24px; margin: 0 0 2px; } h2 { font-size: 16px; margin: 0 0 8px; }
p.lead { color: var(--soft); margin: 0 0 20px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin-bottom: 16px; }
.tile, section { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 14px 16px; }
.tile b { display: block; font-size: 22px; line-height: 1.25; } .tile span { color: var(--soft); font-size: 13px; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(480px, 100%), 1fr)); gap: 16px; margin-bottom: 16px; }
section { margin-bottom: 16px; } .charts section { margin: 0; }
svg { width: 100%; height: auto; display: block; } svg text { font-size: 12.5px; fill: var(--soft); }
.grid { stroke: var(--line); } .axis { stroke: var(--soft); } .curve { fill: none; stroke-width: 2; stroke-linejoin: round; }
table { border-collapse: collapse; width: 100%; } th, td { text-align: left; padding: 5px 12px 5px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--soft); font-weight: 600; } td.number { font-variant-numeric: tabular-nums; white-space: nowrap; }
.bad { color: var(--bad); } .note { color: var(--soft); font-size: 13px; margin: 8px 0 0; } footer { color: var(--soft); font-size: 13px; }
)";

std::string section(std::string_view title, std::string_view inside, std::string_view note = "") {
  return fmt::format("<section><h2>{}</h2>\n{}{}</section>\n", escaped(title), inside,
                     note.empty() ? "" : fmt::format("<p class=\"note\">{}</p>", escaped(note)));
}

std::string tile(std::string_view value, std::string_view what, bool bad = false) {
  return fmt::format("<div class=\"tile\"><b{}>{}</b><span>{}</span></div>\n", bad ? " class=\"bad\"" : "",
                     escaped(value), escaped(what));
}

std::string percent(const std::string& share) {
  return share.empty() ? std::string() : fmt::format("{:.0f} %", 100 * std::atof(share.c_str()));
}

std::string tiles(const RunLog& log) {
  std::string out;
  const auto fact = [&](const char* name, std::string_view what, std::string_view unit = "") {
    if (const std::string value = log.fact(name); !value.empty()) out += tile(value + std::string(unit), what);
  };
  const bool ended = !log.end.empty();
  if (ended && !log.fact("test_accuracy").empty()) out += tile(log.fact("test_accuracy"), "test accuracy");
  if (!ended) out += tile(log.error.empty() ? "not finished" : "failed", "the run's end", true);
  fact("ranks", "ranks");
  fact("transport", "transport");
  fact("codec", "codec");
  if (ended) {
    fact("seconds", "seconds in all", " s");
    fact("samples_per_s", "samples per second");
    if (const auto share = percent(log.fact("comm_share")); !share.empty())
      out += tile(share, "of the steps' time waiting for communication");
    if (log.fact("replicas_equal") == "false") out += tile("no", "replicas equal", true);
  }
  return out;
}

std::string curves(const RunLog& log) {
  std::string out;
  CurveChart loss{.x_label = "step", .y_label = "loss", .curves = {{.name = "training loss"}}};
  CurveChart rate{.x_label = "step",
                  .y_label = "per s",
                  .curves = {{.name = "samples per second, all ranks"}},
                  .from_zero = true};
  for (const auto& s : log.steps) {
    const auto x = static_cast<double>(s.step);
    loss.curves[0].points.push_back({x, s.loss});
    rate.curves[0].points.push_back({x, s.samples_per_s});
  }
  Curve test_loss{.name = "test loss", .dots = true}, accuracy{.name = "test accuracy", .dots = true};
  for (const auto& t : log.tests) {
    const double x = log.steps.empty() ? t.epoch : static_cast<double>(t.step);
    if (t.loss) test_loss.points.push_back({x, *t.loss});
    if (t.accuracy) accuracy.points.push_back({t.epoch, *t.accuracy});
  }
  if (!test_loss.points.empty()) loss.curves.push_back(test_loss);
  if (!log.steps.empty()) out += section("Loss", draw(loss));
  if (accuracy.points.size() > 1)
    out += section("Accuracy", draw(CurveChart{.x_label = "epoch", .y_label = "share", .curves = {accuracy}}));
  if (!log.steps.empty()) out += section("Rate", draw(rate));
  return out;
}

// A rank is held up by communication at least as long as the rank that is held up least: that much the exchange
// itself takes. What it is held up beyond that, it waits for slower ranks.
std::string times_by_rank(const RunLog& log) {
  if (log.times.empty()) return {};
  size_t ranks = 0, steps = 0;
  for (const auto& t : log.times) ranks = std::max(ranks, t.compute_s.size());
  std::vector<double> compute(ranks), wait(ranks), exchange(ranks), covered(ranks);
  for (const auto& t : log.times) {
    steps += t.steps;
    const double least = *std::min_element(t.exposed_s.begin(), t.exposed_s.end());
    for (size_t r = 0; r < t.compute_s.size(); ++r) {
      compute[r] += t.compute_s[r];
      exchange[r] += least;
      wait[r] += t.exposed_s[r] - least;
      covered[r] += static_cast<double>(t.steps);
    }
  }
  BarChart bars{
      .y_label = "ms", .parts = {"computing", "waiting for others", "communicating"}, .labels = {}, .values = {}};
  for (size_t r = 0; r < ranks; ++r) {
    const double scale = 1e3 / covered[r];
    bars.labels.push_back(fmt::format("rank {}", r));
    bars.values.push_back({compute[r] * scale, wait[r] * scale, exchange[r] * scale});
  }
  return section(
      "Time of a step, by rank", draw(bars),
      fmt::format(
          "Mean of {} steps. Only communication that holds a rank up counts; what overlaps with computing does not.",
          steps));
}

// What the schedule alone leaves idle, by its formula; "" where the log does not name one that has a formula.
std::string ideal_idle_of(const RunLog& log) {
  const auto recipe = pipeline::find_recipe(log.fact("pipeline_schedule"));
  if (!recipe.ok()) return {};
  const std::string layers = log.fact("layers_of_stages");
  pipeline::Shape shape{.ranks = std::atoi(log.fact("pipeline").c_str()),
                        .micro_batches = std::atoi(log.fact("micro_batches").c_str())};
  if (shape.ranks < 1) return {};
  shape.chunks = (static_cast<int>(std::count(layers.begin(), layers.end(), ',')) + 1) / shape.ranks;
  const pipeline::Times even;  // a backward pass takes twice as long as a forward pass
  const auto bubble = recipe->accepts(shape).ok() ? recipe->bubble(shape, even) : std::nullopt;
  if (!bubble) return {};
  return fmt::format(" Stages that all take equally long, on processors of their own, would leave {:.0f} %.",
                     100 * *bubble / (*bubble + shape.micro_batches * even.work()));
}

std::string pipeline_of(const RunLog& log) {
  if (!log.timeline || log.timeline->spans.empty()) return {};
  SpanChart chart{.x_label = "ms", .rows = {}, .spans = {}};
  for (const auto& s : log.timeline->spans) {
    const auto row = static_cast<size_t>(s.rank);
    while (chart.rows.size() <= row) chart.rows.push_back(fmt::format("rank {}", chart.rows.size()));
    chart.spans.push_back({row, s.begin, s.end, s.kind,
                           fmt::format("{} of micro-batch {} on stage {}", s.kind, s.micro_batch, s.stage)});
  }
  return section(
      "The last steps of the pipeline", draw(chart),
      fmt::format("Of the first replica; ranks are numbered along its pipeline. A step takes {:.3g} ms, of "
                  "which a rank does not compute for {:.0f} % on average.{}",
                  1e3 * log.timeline->step_s, 100 * log.timeline->idle, ideal_idle_of(log)));
}

std::string facts_table(const RunLog::Facts& facts) {
  std::string rows;
  for (const auto& [name, value] : facts)
    rows += fmt::format("<tr><th>{}</th><td>{}</td></tr>\n", escaped(name), escaped(value));
  return "<table>" + rows + "</table>";
}

std::string decisions(const RunLog& log) {
  if (log.decisions.empty()) return {};
  std::string rows = "<tr><th>step</th><th>seen</th><th>changed</th><th>what came of it</th></tr>\n";
  for (const auto& d : log.decisions)
    rows += fmt::format("<tr><td class=\"number\">{}</td><td>{}</td><td>{}</td><td>{}</td></tr>\n", d.step,
                        escaped(d.seen), escaped(d.changed), escaped(d.outcome));
  return section("Decisions", "<table>" + rows + "</table>");
}

}  // namespace

std::string page(const RunLog& log, const SpanChart* timeline, const std::string& source) {
  const std::string title =
      fmt::format("{} on {} rank{}", log.fact("model"), log.fact("ranks"), log.fact("ranks") == "1" ? "" : "s");
  std::string out = fmt::format(
      "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" "
      "content=\"width=device-width, "
      "initial-scale=1\">\n<title>{0}</title>\n<style>{1}</style></head>\n<body><main>\n"
      "<h1>{0}</h1>\n<p class=\"lead\">A training run of Ringfold</p>\n<div class=\"tiles\">\n{2}</div>\n",
      escaped(title), kStyle, tiles(log));
  if (!log.error.empty()) out += section("How it failed", fmt::format("<p class=\"bad\">{}</p>", escaped(log.error)));
  if (log.cut)
    out += section("The log is cut", "",
                   "Its last line is not whole: the run was stopped while it wrote, or still goes on.");
  out += "<div class=\"charts\">\n" + curves(log) + times_by_rank(log) + "</div>\n";
  out += pipeline_of(log);
  if (timeline) out += section("Timeline of the pipeline", draw(*timeline));
  out += decisions(log);
  out += "<div class=\"charts\">\n" + section("Settings", facts_table(log.start));
  if (!log.end.empty()) out += section("Outcome", facts_table(log.end));
  out += "</div>\n";
  return out + fmt::format("<footer>Made of {} by ringfold report {}</footer>\n</main></body></html>\n",
                           escaped(source), ringfold::version());
}

}  // namespace ringfold::cli
