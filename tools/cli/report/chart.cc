#include "tools/cli/report/chart.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <map>

namespace ringfold::cli {
namespace {

// Colours that people with any kind of colour vision can tell apart.
constexpr std::array<std::string_view, 8> kChartColours = {"#0072b2", "#d55e00", "#009e73", "#cc79a7",
                                                           "#e69f00", "#56b4e9", "#5b3a8e", "#777777"};
// In units that are pixels where a chart has the room that its page means it to have: half of it, or all of it.
constexpr double kHalfWidth = 540, kFullWidth = 1110, kChartLeft = 66, kChartRight = 14, kChartTop = 30,
                 kPlotHeight = 230;

std::string_view colour(size_t i) { return kChartColours[i % kChartColours.size()]; }

struct Range {
  double low = 0, high = 1, every = 0.2;

  // From values' least and most to round numbers, about `count` of them.
  static Range of(double least, double most, int count, bool whole = false) {
    if (!(least <= most)) return {};
    if (least == most) most = least + std::max(1e-12, std::fabs(least) * 0.1);
    const double rough = (most - least) / count, power = std::pow(10, std::floor(std::log10(rough)));
    const double digits = rough / power;
    double every = power * (digits <= 1 ? 1 : digits <= 2 ? 2 : digits <= 5 ? 5 : 10);
    if (whole) every = std::max(every, 1.0);
    return {std::floor(least / every + 1e-9) * every, std::ceil(most / every - 1e-9) * every, every};
  }
  double share(double v) const { return (v - low) / (high - low); }
};

class Canvas {
 public:
  Canvas(double width, double height)
      : width_(width), out_(fmt::format("<svg viewBox=\"0 0 {:g} {:g}\" role=\"img\">\n", width, height)) {}

  double right() const { return width_ - kChartRight; }
  double width() const { return right() - kChartLeft; }
  void line(double x1, double y1, double x2, double y2, std::string_view css) {
    out_ += fmt::format("<line class=\"{}\" x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\"/>\n", css, x1, y1,
                        x2, y2);
  }
  void text(double x, double y, std::string_view what, std::string_view anchor) {
    out_ +=
        fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\">{}</text>\n", x, y, anchor, escaped(what));
  }
  void box(double x, double y, double width, double height, std::string_view fill, std::string_view title) {
    out_ += fmt::format(
        "<rect x=\"{:.2f}\" y=\"{:.2f}\" width=\"{:.2f}\" height=\"{:.2f}\" fill=\"{}\"><title>{}</title></rect>\n",
        x, y, std::max(width, 0.0), std::max(height, 0.0), fill, escaped(title));
  }
  void raw(const std::string& svg) { out_ += svg; }
  // Names with their colours, above the plot.
  void legend(const std::vector<std::string>& names) {
    double x = kChartLeft;
    for (size_t i = 0; i < names.size() && x < right() - 60; ++i) {
      box(x, 8, 12, 12, colour(i), names[i]);
      text(x + 17, 18, names[i], "start");
      x += 34 + 6.6 * static_cast<double>(names[i].size());
    }
  }
  void y_axis(const Range& y, std::string_view label) {
    for (double v = y.low; v <= y.high + y.every / 2; v += y.every) {
      const double at = y_of(y, v);
      line(kChartLeft, at, right(), at, "grid");
      text(kChartLeft - 7, at + 4, fmt::format("{:.4g}", std::fabs(v) < y.every / 1e6 ? 0.0 : v), "end");
    }
    text(kChartLeft - 7, kChartTop - 14, label, "end");
  }
  void x_axis(const Range& x, std::string_view label) {
    const double bottom = kChartTop + kPlotHeight;
    for (double v = x.low; v <= x.high + x.every / 2; v += x.every) {
      line(x_of(x, v), bottom, x_of(x, v), bottom + 5, "axis");
      text(x_of(x, v), bottom + 19, fmt::format("{:.6g}", std::fabs(v) < x.every / 1e6 ? 0.0 : v), "middle");
    }
    line(kChartLeft, bottom, right(), bottom, "axis");
    text(kChartLeft + width() / 2, bottom + 37, label, "middle");
  }
  double x_of(const Range& x, double v) const { return kChartLeft + width() * x.share(v); }
  static double y_of(const Range& y, double v) { return kChartTop + kPlotHeight * (1 - y.share(v)); }
  std::string done() { return out_ + "</svg>\n"; }

 private:
  double width_;
  std::string out_;
};

}  // namespace

std::string escaped(std::string_view text) {
  std::string out;
  for (char c : text) {
    switch (c) {
      case '&': out += "&amp;"; break;
      case '<': out += "&lt;"; break;
      case '>': out += "&gt;"; break;
      case '"': out += "&quot;"; break;
      case '\'': out += "&#39;"; break;
      default: out += static_cast<unsigned char>(c) < 32 && c != '\n' ? ' ' : c;
    }
  }
  return out;
}

std::string draw(const CurveChart& chart) {
  double x_least = INFINITY, x_most = -INFINITY, y_least = INFINITY, y_most = -INFINITY;
  bool whole = true;  // steps, epochs
  for (const Curve& curve : chart.curves) {
    for (const auto& p : curve.points) {
      if (!std::isfinite(p.x) || !std::isfinite(p.y)) continue;
      whole = whole && p.x == std::floor(p.x);
      x_least = std::min(x_least, p.x), x_most = std::max(x_most, p.x);
      y_least = std::min(y_least, p.y), y_most = std::max(y_most, p.y);
    }
  }
  if (chart.from_zero) y_least = std::min(0.0, y_least);
  Range x = Range::of(x_least, x_most, 6, whole), y = Range::of(y_least, y_most, 5);
  Canvas canvas(kHalfWidth, kChartTop + kPlotHeight + 48);
  std::vector<std::string> names;
  for (const Curve& curve : chart.curves) names.push_back(curve.name);
  canvas.y_axis(y, chart.y_label);
  canvas.x_axis(x, chart.x_label);
  canvas.legend(names);
  for (size_t i = 0; i < chart.curves.size(); ++i) {
    std::string path, dots;
    bool open = false;
    for (const auto& p : chart.curves[i].points) {
      if (!std::isfinite(p.x) || !std::isfinite(p.y)) {
        open = false;
        continue;
      }
      const double px = canvas.x_of(x, p.x), py = Canvas::y_of(y, p.y);
      path += fmt::format("{}{:.1f} {:.1f} ", open ? 'L' : 'M', px, py);
      open = true;
      if (!chart.curves[i].dots) continue;
      dots += fmt::format(
          "<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"3.5\" fill=\"{}\"><title>{}: {:.5g} at {:.6g}</title></circle>\n",
          px, py, colour(i), escaped(chart.curves[i].name), p.y, p.x);
    }
    canvas.raw(fmt::format("<path class=\"curve\" stroke=\"{}\" d=\"{}\"/>\n{}", colour(i), path, dots));
  }
  return canvas.done();
}

std::string draw(const BarChart& chart) {
  double most = 0;
  for (const auto& bar : chart.values) {
    double sum = 0;
    for (double v : bar) sum += v;
    most = std::max(most, sum);
  }
  const Range y = Range::of(0, most, 5);
  Canvas canvas(kHalfWidth, kChartTop + kPlotHeight + 30);
  canvas.y_axis(y, chart.y_label);
  canvas.legend(chart.parts);
  const double step = canvas.width() / static_cast<double>(std::max<size_t>(chart.labels.size(), 1));
  const double width = std::min(70.0, step * 0.7);
  const size_t every = static_cast<size_t>(std::ceil(60 / step));  // labels that do not run into each other
  for (size_t i = 0; i < chart.labels.size(); ++i) {
    const double middle = kChartLeft + step * (static_cast<double>(i) + 0.5);
    double below = 0;
    for (size_t p = 0; p < chart.values[i].size(); ++p) {
      const double top = below + chart.values[i][p];
      canvas.box(middle - width / 2, Canvas::y_of(y, top), width, Canvas::y_of(y, below) - Canvas::y_of(y, top),
                 colour(p), fmt::format("{}, {}: {:.4g}", chart.labels[i], chart.parts[p], chart.values[i][p]));
      below = top;
    }
    if (i % every == 0) canvas.text(middle, kChartTop + kPlotHeight + 19, chart.labels[i], "middle");
  }
  canvas.line(kChartLeft, kChartTop + kPlotHeight, canvas.right(), kChartTop + kPlotHeight, "axis");
  return canvas.done();
}

std::string draw(const SpanChart& chart) {
  constexpr double kRow = 26;
  double least = INFINITY, most = -INFINITY;
  for (const auto& s : chart.spans) least = std::min(least, s.begin), most = std::max(most, s.end);
  Range x = Range::of(least, most, 8);
  x.low = std::min(x.low, least);
  const double bottom = kChartTop + kRow * static_cast<double>(chart.rows.size());
  Canvas canvas(kFullWidth, bottom + 44);
  std::map<std::string, size_t> kinds;
  std::vector<std::string> names;
  for (const auto& s : chart.spans) {
    if (kinds.emplace(s.kind, names.size()).second) names.push_back(s.kind);
  }
  canvas.legend(names);
  for (size_t r = 0; r < chart.rows.size(); ++r)
    canvas.text(kChartLeft - 7, kChartTop + kRow * (static_cast<double>(r) + 0.5) + 4, chart.rows[r], "end");
  for (const auto& s : chart.spans) {
    const double from = canvas.x_of(x, s.begin);
    canvas.box(from, kChartTop + kRow * static_cast<double>(s.row) + 3, canvas.x_of(x, s.end) - from, kRow - 6,
               colour(kinds[s.kind]), fmt::format("{}: {:.4g} to {:.4g}", s.name, s.begin, s.end));
  }
  for (double v = x.low; v <= x.high + x.every / 2; v += x.every) {
    canvas.line(canvas.x_of(x, v), bottom, canvas.x_of(x, v), bottom + 5, "axis");
    canvas.text(canvas.x_of(x, v), bottom + 19, fmt::format("{:.6g}", v), "middle");
  }
  canvas.line(kChartLeft, bottom, canvas.right(), bottom, "axis");
  canvas.text(kChartLeft + canvas.width() / 2, bottom + 37, chart.x_label, "middle");
  return canvas.done();
}

}  // namespace ringfold::cli
