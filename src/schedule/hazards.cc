#include "schedule/hazards.h"

#include <algorithm>
#include <numeric>

namespace ringfold::schedule {

Hazards::Hazards(const Walk& walk)
    : carried_(walk.links().size()),
      reading_(walk.links().size()),
      signals_(walk.events().size()),
      cells_(walk.cells()) {
  const uint32_t n = walk.actors();
  component_.resize(n);
  std::iota(component_.begin(), component_.end(), 0);
  const auto find = [&](uint32_t a) {
    while (component_[a] != a) a = component_[a] = component_[component_[a]];
    return a;
  };
  for (const auto& link : walk.links()) component_[find(link.from)] = find(link.to);
  for (const auto& event : walk.events()) {
    if (event.signaller < n && event.waiter < n) component_[find(event.signaller)] = find(event.waiter);
  }
  std::vector<uint32_t> members(n, 0);
  place_.resize(n);
  width_.resize(n);
  offset_.resize(n);
  for (uint32_t a = 0; a < n; ++a) {
    component_[a] = find(a);
    place_[a] = members[component_[a]]++;
  }
  size_t total = 0;
  for (uint32_t a = 0; a < n; ++a) {
    width_[a] = members[component_[a]];
    offset_[a] = total;
    total += width_[a];
  }
  clocks_.assign(total, 0);
}

Hazards::Clock Hazards::snapshot(Walk::Site site) {
  int16_t* own = clock(site.actor);
  own[place_[site.actor]] = static_cast<int16_t>(site.step);
  return Clock(own, own + width_[site.actor]);
}

void Hazards::join(uint32_t actor, const Clock& other) {
  int16_t* own = clock(actor);
  for (size_t i = 0; i < other.size(); ++i) own[i] = std::max(own[i], other[i]);
}

bool Hazards::before(Walk::Site earlier, uint32_t actor) {
  if (earlier.actor == actor) return true;
  return component_[earlier.actor] == component_[actor] &&
         clock(actor)[place_[earlier.actor]] > static_cast<int32_t>(earlier.step);
}

void Hazards::send(Walk::Site site, uint32_t link) {
  carried_[link] = snapshot(site);
  reading_[link] = static_cast<uint32_t>(readings_.size());
  readings_.push_back({site, {}, true});
}

void Hazards::receive(Walk::Site site, uint32_t link) {
  join(site.actor, carried_[link]);
  readings_[reading_[link]].until = site;
  readings_[reading_[link]].open = false;
}

void Hazards::signal(Walk::Site site, uint32_t event) { signals_[event].clocks.push_back(snapshot(site)); }

void Hazards::wait(Walk::Site site, uint32_t event) {
  Signals& signals = signals_[event];
  join(site.actor, signals.clocks[signals.waited++]);
}

bool Hazards::after_write(uint32_t actor, const Cell& cell) {
  if (cell.writer == 0) return true;
  conflict_ = {cell.writer - 1, cell.written};
  return before(conflict_, actor);
}

void Hazards::add_reader(Cell& cell) {
  readers_.push_back({static_cast<uint32_t>(readings_.size() - 1), cell.readers});
  cell.readers = static_cast<uint32_t>(readers_.size());
}

bool Hazards::sends(Walk::Site site, uint64_t cell) {
  add_reader(cells_[cell]);
  return after_write(site.actor, cells_[cell]);
}

bool Hazards::reads(Walk::Site site, uint64_t cell) {
  readings_.push_back({site, site, false});
  add_reader(cells_[cell]);
  return after_write(site.actor, cells_[cell]);
}

bool Hazards::writes(Walk::Site site, uint64_t index) {
  Cell& cell = cells_[index];
  if (!after_write(site.actor, cell)) return false;
  for (uint32_t i = cell.readers; i != 0; i = readers_[i - 1].next) {
    const Reading& reading = readings_[readers_[i - 1].reading];
    conflict_ = reading.from;
    if (reading.open || !before(reading.until, site.actor)) return false;
  }
  cell = {site.actor + 1, site.step, 0};
  return true;
}

}  // namespace ringfold::schedule
