// Pictures for pages: curves on linear axes, stacked bars, and spans on rows, as SVG that is as wide as its place
// allows. Text given to them may be anything; it is escaped here.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace ringfold::cli {

// For HTML and SVG alike, in text and in attributes.
std::string escaped(std::string_view text);

struct Curve {
  struct Point {
    double x = 0, y = 0;  // those that are not finite are gaps
  };
  std::string name;
  std::vector<Point> points;
  bool dots = false;
};

struct CurveChart {
  std::string x_label, y_label;
  std::vector<Curve> curves;
  bool from_zero = false;  // the y axis begins at 0
};
std::string draw(const CurveChart& chart);

// One bar per label, made of parts in the order of the names.
struct BarChart {
  std::string y_label;
  std::vector<std::string> parts;
  std::vector<std::string> labels;
  std::vector<std::vector<double>> values;  // [label][part], >= 0
};
std::string draw(const BarChart& chart);

struct SpanChart {
  struct Span {
    size_t row = 0;
    double begin = 0, end = 0;
    std::string kind, name;  // the kind chooses the colour; the name shows under the pointer
  };
  std::string x_label;
  std::vector<std::string> rows;
  std::vector<Span> spans;
};
std::string draw(const SpanChart& chart);

}  // namespace ringfold::cli
