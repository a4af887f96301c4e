#include "deploy/api.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <vector>

namespace ringfold::deploy {
namespace {

using ApiJson = nlohmann::ordered_json;

struct Route {
  std::string_view target, method;
};
constexpr std::array kRoutes = {Route{"/health", "GET"}, Route{"/model", "GET"}, Route{"/predict", "POST"}};

std::string text_of(const ApiJson& json) {
  return json.dump(-1, ' ', false, ApiJson::error_handler_t::replace) + "\n";
}

Reply failed(const Status& status) {
  const unsigned code = status.code() == Code::kInvalid ? 400 : status.code() == Code::kAborted ? 503 : 500;
  return error_reply(code, status.message());
}

// Appends an image of numbers, flat or row by row. "" when it is one.
std::string read_image(const ApiJson& image, std::vector<float>& pixels) {
  const auto whole = [&](const ApiJson& list, size_t count) { return list.is_array() && list.size() == count; };
  const auto number = [&](const ApiJson& value) -> std::string {
    if (!value.is_number()) return "has a value that is no number";
    const double grey = value.get<double>();
    if (!(grey >= 0 && grey <= 255)) return fmt::format("has the value {}, which is not between 0 and 255", grey);
    pixels.push_back(static_cast<float>(grey));
    return "";
  };
  if (whole(image, train::kImageElems)) {
    for (const auto& value : image) {
      if (auto wrong = number(value); !wrong.empty()) return wrong;
    }
    return "";
  }
  if (!whole(image, train::kImageSide)) return "is neither a list of 784 numbers nor of 28 rows";
  for (const auto& row : image) {
    if (!whole(row, train::kImageSide)) return "has a row that is not of 28 numbers";
    for (const auto& value : row) {
      if (auto wrong = number(value); !wrong.empty()) return wrong;
    }
  }
  return "";
}

// "" when `request` has nothing but these fields.
std::string unknown_field(const ApiJson& request, std::initializer_list<std::string_view> known) {
  for (const auto& [name, value] : request.items()) {
    if (std::find(known.begin(), known.end(), name) == known.end()) return name;
  }
  return "";
}

Reply classify(const train::Predictor& predictor, const ApiJson& request) {
  if (const auto name = unknown_field(request, {"images"}); !name.empty())
    return error_reply(400, fmt::format("there is no field \"{}\"; there is \"images\"", name));
  const auto& images = request["images"];
  if (!images.is_array() || images.empty()) return error_reply(400, "\"images\" is no list of at least one image");
  std::vector<float> pixels;
  for (size_t i = 0; i < images.size(); ++i) {
    if (const auto wrong = read_image(images[i], pixels); !wrong.empty())
      return error_reply(400, fmt::format("image {} {}", i, wrong));
  }
  const auto all = predictor.classify(pixels);
  if (!all.ok()) return failed(all.status());
  ApiJson predictions = ApiJson::array();
  for (const auto& p : *all) {
    const auto best = static_cast<int>(std::max_element(p.begin(), p.end()) - p.begin());
    predictions.push_back({{"class", best}, {"name", train::class_name(best)}, {"probabilities", p}});
  }
  return {.body = text_of({{"predictions", predictions}})};
}

Reply go_on(const train::Predictor& predictor, const ApiJson& request, const std::atomic<bool>& stop) {
  if (const auto name = unknown_field(request, {"text", "bytes", "temperature", "seed"}); !name.empty())
    return error_reply(
        400,
        fmt::format("there is no field \"{}\"; there are \"text\", \"bytes\", \"temperature\" and \"seed\"", name));
  if (!request["text"].is_string()) return error_reply(400, "\"text\" is no string");
  train::Continuation how;
  if (request.contains("bytes")) {
    const auto& bytes = request["bytes"];
    if (!bytes.is_number_unsigned() || bytes.get<uint64_t>() < 1 || bytes.get<uint64_t>() > kMostBytesMade)
      return error_reply(400, fmt::format("\"bytes\" is no whole number from 1 to {}", kMostBytesMade));
    how.bytes = bytes.get<size_t>();
  }
  if (request.contains("temperature")) {
    if (!request["temperature"].is_number()) return error_reply(400, "\"temperature\" is no number");
    how.temperature = request["temperature"].get<double>();
  }
  if (request.contains("seed")) {
    if (!request["seed"].is_number_unsigned()) return error_reply(400, "\"seed\" is no whole number from 0 on");
    how.seed = request["seed"].get<uint64_t>();
  }
  const auto text = predictor.go_on(request["text"].get_ref<const std::string&>(), how, &stop);
  if (!text.ok()) return failed(text.status());
  return {.body = text_of({{"text", *text}})};
}

Reply predict(const train::Predictor& predictor, std::string_view body, const std::atomic<bool>& stop) {
  ApiJson request;
  try {
    request = ApiJson::parse(body);
  } catch (const ApiJson::exception& e) {
    return error_reply(400, std::string("the body is no JSON: ") + e.what());
  }
  const bool text = predictor.about().model.is_text();
  const char* const field = text ? "text" : "images";
  if (!request.is_object() || !request.contains(field))
    return error_reply(
        400, fmt::format("the body is no JSON object with the field \"{}\", which this model takes", field));
  return text ? go_on(predictor, request, stop) : classify(predictor, request);
}

}  // namespace

Reply error_reply(unsigned status, std::string_view message) {
  return {.status = status, .body = text_of({{"error", std::string(message)}})};
}

Reply refuse_early(std::string_view method, std::string_view target) {
  const auto route = std::find_if(kRoutes.begin(), kRoutes.end(), [&](const Route& r) { return r.target == target; });
  if (route == kRoutes.end())
    return error_reply(404, fmt::format("there is no {}; there are /health, /model and /predict", target));
  if (route->method == method) return {};
  Reply reply = error_reply(405, fmt::format("{} takes {}, not {}", target, route->method, method));
  reply.allow = route->method;
  return reply;
}

Reply answer(const train::Predictor& predictor, std::string_view method, std::string_view target,
             std::string_view body, const std::atomic<bool>& stop) {
  if (Reply early = refuse_early(method, target); early.status != 200) return early;
  if (target == "/health") return {.body = text_of({{"status", "ok"}})};
  if (target == "/predict") return predict(predictor, body, stop);
  ApiJson model = ApiJson::parse(train::to_json(predictor.about()));
  model["sha256"] = predictor.digest();
  return {.body = text_of(model)};
}

}  // namespace ringfold::deploy
