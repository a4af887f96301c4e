#include "tools/cli/perf/plot.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <string_view>

#include "tools/cli/cli.h"

namespace ringfold::cli {
namespace {

// Eight colours that people with any kind of colour vision can tell apart; the next eight series are dashed.
constexpr std::array<std::string_view, 8> kColours = {"#0072b2", "#d55e00", "#009e73", "#cc79a7",
                                                      "#e69f00", "#56b4e9", "#5b3a8e", "#444444"};
constexpr double kWidth = 430, kHeight = 330, kGapX = 92, kTop = 74, kLeft = 78;

// The whole powers that hold all values; at least one step wide.
struct Axis {
  double base = 10, low = 0, high = 1;  // exponents
  void include(const std::vector<double>& values) {
    if (values.empty()) return;
    const auto [least, most] = std::minmax_element(values.begin(), values.end());
    low = std::floor(std::log(*least) / std::log(base) + 1e-9);
    high = std::max(low + 1, std::ceil(std::log(*most) / std::log(base) - 1e-9));
  }
  double share(double value) const { return (std::log(value) / std::log(base) - low) / (high - low); }
};

void draw_panel(std::string* out, const Panel& panel, double left) {
  std::vector<double> xs, ys;
  for (const Series& s : panel.series) {
    for (const auto& p : s.points) {
      if (p.x <= 0 || p.y <= 0) continue;
      xs.push_back(p.x);
      ys.push_back(p.y);
    }
  }
  Axis x{2}, y{10};
  x.include(xs);
  y.include(ys);
  const auto at_x = [&](double v) { return left + kWidth * x.share(v); };
  const auto at_y = [&](double v) { return kTop + kHeight * (1 - y.share(v)); };
  const double bottom = kTop + kHeight;
  const auto text = [&](double px, double py, std::string_view what, std::string_view style) {
    *out += fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" {}>{}</text>\n", px, py, style, what);
  };
  const auto line = [&](double x1, double y1, double x2, double y2, std::string_view style) {
    *out +=
        fmt::format("<line x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\" {}/>\n", x1, y1, x2, y2, style);
  };

  text(left, kTop - 12, fmt::format("{} ({})", panel.title, panel.unit),
       "font-size=\"13\" font-weight=\"bold\" fill=\"#1d2733\"");
  for (double e = y.low; e <= y.high + 0.01; ++e) {
    for (int digit = 1; digit < 10; ++digit) {  // 2 to 9 are fine lines, labelled where the axis is short
      const double value = digit * std::pow(10.0, e), py = at_y(value);
      if (py < kTop - 0.5) break;
      line(left, py, left + kWidth, py, digit == 1 ? "stroke=\"#ccd3da\"" : "stroke=\"#eef1f4\"");
      if (digit == 1 || ((digit == 2 || digit == 5) && y.high - y.low < 3)) {
        text(left - 8, py + 4, fmt::format("{:g}", value), "font-size=\"11\" fill=\"#4a5866\" text-anchor=\"end\"");
      }
    }
  }
  const double every = std::max(1.0, std::ceil((x.high - x.low) / 8));
  for (double e = x.low; e <= x.high + 0.01; ++e) {
    const bool labelled = std::fmod(e - x.low, every) < 0.01;
    const double px = at_x(std::exp2(e));
    line(px, kTop, px, bottom, labelled ? "stroke=\"#ccd3da\"" : "stroke=\"#eef1f4\"");
    if (!labelled) continue;
    text(px, bottom + 17, size_text(static_cast<unsigned long long>(std::exp2(e))),
         "font-size=\"11\" fill=\"#4a5866\" text-anchor=\"middle\"");
  }
  text(left + kWidth / 2, bottom + 38, "size (bytes)", "font-size=\"12\" fill=\"#1d2733\" text-anchor=\"middle\"");
  line(left, bottom, left + kWidth, bottom, "stroke=\"#4a5866\" stroke-width=\"1.2\"");
  line(left, kTop, left, bottom, "stroke=\"#4a5866\" stroke-width=\"1.2\"");

  for (size_t i = 0; i < panel.series.size(); ++i) {
    const auto colour = kColours[i % kColours.size()];
    std::string path, dots;
    for (const auto& p : panel.series[i].points) {
      if (p.x <= 0 || p.y <= 0) continue;
      path += fmt::format("{}{:.1f} {:.1f}", path.empty() ? "M" : " L", at_x(p.x), at_y(p.y));
      dots +=
          fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"2.6\" fill=\"{}\"/>\n", at_x(p.x), at_y(p.y), colour);
    }
    if (path.empty()) continue;
    *out += fmt::format(
        "<path d=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"1.9\" stroke-linejoin=\"round\"{}/>\n{}", path,
        colour, i >= kColours.size() ? " stroke-dasharray=\"5 3\"" : "", dots);
  }
}

}  // namespace

std::string plot(const std::string& title, const std::vector<Panel>& panels) {
  const double columns = static_cast<double>(panels.size());
  const double right = kLeft + columns * kWidth + (columns - 1) * kGapX;
  const double width = right + 190, height = kTop + kHeight + 60;
  std::string out = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0:.0f}\" height=\"{1:.0f}\" viewBox=\"0 0 {0:.0f} "
      "{1:.0f}\" "
      "font-family=\"Helvetica, Arial, sans-serif\">\n<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n"
      "<text x=\"{2:.0f}\" y=\"32\" font-size=\"17\" font-weight=\"bold\" fill=\"#1d2733\">{3}</text>\n",
      width, height, kLeft, title);
  for (size_t p = 0; p < panels.size(); ++p) {
    draw_panel(&out, panels[p], kLeft + static_cast<double>(p) * (kWidth + kGapX));
  }
  if (panels.empty()) return out + "</svg>\n";
  for (size_t i = 0; i < panels[0].series.size(); ++i) {
    const double y = kTop + 10 + 20 * static_cast<double>(i);
    out += fmt::format(
        "<line x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\" stroke=\"{}\" stroke-width=\"2.2\"{}/>\n"
        "<text x=\"{:.1f}\" y=\"{:.1f}\" font-size=\"12\" fill=\"#1d2733\">{}</text>\n",
        right + 22, y, right + 48, y, kColours[i % kColours.size()],
        i >= kColours.size() ? " stroke-dasharray=\"5 3\"" : "", right + 56, y + 4, panels[0].series[i].name);
  }
  return out + "</svg>\n";
}

}  // namespace ringfold::cli
