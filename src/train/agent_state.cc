// What an agent knows, as text: ranks that go on together after one was lost, or came, must also decide alike.
#include <nlohmann/json.hpp>

#include "train/agent.h"

namespace ringfold::train {
namespace {

using AgentJson = nlohmann::json;

AgentJson to_json(const Settings& s) {
  return {{"crew", s.crew},
          {"sync", s.sync},
          {"codec", s.codec},
          {"batch", s.batch},
          {"local_steps", s.local_steps},
          {"staleness", s.staleness},
          {"pipeline", s.cut.pipeline},
          {"tensor", s.cut.tensor},
          {"micro_batches", s.micro_batches},
          {"bucket_kib", s.bucket_kib},
          {"shares", s.shares}};
}

Settings settings_from(const AgentJson& j) {
  return {.crew = j.at("crew"),
          .sync = j.at("sync"),
          .codec = j.at("codec"),
          .batch = j.at("batch"),
          .local_steps = j.at("local_steps"),
          .staleness = j.at("staleness"),
          .cut = {.pipeline = j.at("pipeline"), .tensor = j.at("tensor")},
          .micro_batches = j.at("micro_batches"),
          .bucket_kib = j.at("bucket_kib"),
          .shares = j.at("shares")};
}

}  // namespace

std::string Agent::to_text() const {
  AgentJson crews = AgentJson::array();
  for (const Crew& c : survey_.crews) {
    crews.push_back({{"name", c.name},
                     {"ranks", c.ranks},
                     {"sample_s", c.sample_s},
                     {"own_sample_s", c.own_sample_s},
                     {"fixed_s", c.fixed_s},
                     {"exchange_s", c.exchange_s}});
  }
  AgentJson all = {{"crews", crews},
                   {"gradient_bytes", survey_.gradient_bytes},
                   {"batch", survey_.batch},
                   {"batches", survey_.batches},
                   {"samples", survey_.samples},
                   {"settings", to_json(settings_)},
                   {"tried", tried_},
                   {"balanced_in_vain", balanced_in_vain_},
                   {"least_loss", least_loss_},
                   {"outcome", outcome_}};
  if (trial_)
    all["trial"] = {{"before", to_json(trial_->before)},
                    {"step_s", trial_->step_s},
                    {"loss", trial_->loss},
                    {"what", trial_->what}};
  return all.dump();
}

Result<Agent> Agent::from_text(const std::string& text) {
  try {
    const auto all = AgentJson::parse(text);
    Survey survey{.gradient_bytes = all.at("gradient_bytes"),
                  .batch = all.at("batch"),
                  .samples = all.at("samples"),
                  .batches = all.at("batches")};
    for (const auto& c : all.at("crews")) {
      survey.crews.push_back({.name = c.at("name"),
                              .ranks = c.at("ranks"),
                              .sample_s = c.at("sample_s"),
                              .own_sample_s = c.at("own_sample_s"),
                              .fixed_s = c.at("fixed_s"),
                              .exchange_s = c.at("exchange_s")});
    }
    Agent agent(std::move(survey), {.settings = settings_from(all.at("settings"))});
    if (agent.settings_.crew >= agent.survey_.crews.size())
      return Status(Code::kProtocol, "what another rank said of its agent names a crew that there is not");
    agent.tried_ = all.at("tried");
    agent.balanced_in_vain_ = all.at("balanced_in_vain");
    agent.least_loss_ = all.at("least_loss");
    agent.outcome_ = all.at("outcome");
    if (const auto t = all.find("trial"); t != all.end())
      agent.trial_ = Trial{settings_from(t->at("before")), t->at("step_s"), t->at("loss"), t->at("what")};
    return agent;
  } catch (const AgentJson::exception& e) {
    return Status(Code::kProtocol, std::string("what another rank said of its agent is damaged: ") + e.what());
  }
}

}  // namespace ringfold::train
