// Curves over message size, both axes logarithmic, as an SVG picture.
#pragma once

#include <string>
#include <vector>

namespace ringfold::cli {

struct Series {
  struct Point {
    double x = 0, y = 0;  // values of 0 and less have no place on a logarithmic axis and are left out
  };
  std::string name;
  std::vector<Point> points;
};

struct Panel {
  std::string title, unit;  // of the y axis; x is bytes
  std::vector<Series> series;
};

// Panels side by side with one legend: the series of all panels have the same names in the same order.
std::string plot(const std::string& title, const std::vector<Panel>& panels);

}  // namespace ringfold::cli
