#include "deploy/main.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <string>

#include "deploy/predict.h"
#include "deploy/serve.h"
#include "train/export.h"
#include "train/predictor.h"
#include "train/trainer.h"

namespace ringfold::deploy {
namespace {

int fail(const Status& status) {
  fmt::print(stderr, "ringfold-model: {}\n", status.to_string());
  return 1;
}

}  // namespace

int model_main(int argc, char** argv) {
  CLI::App app("Trained models in use: `ringfold export`, `ringfold predict` and `ringfold serve` run this.",
               "ringfold-model");
  app.require_subcommand(1);
  app.option_defaults()->always_capture_default();
  app.failure_message(CLI::FailureMessage::simple);
  std::string model, out, digest, key_file;

  auto* export_verb =
      app.add_subcommand("export", "Make a TorchScript file of a trained model, and a card that describes it");
  export_verb->add_option("model", model, "What `ringfold train --save` wrote")->required();
  export_verb->add_option("out", out, "The TorchScript file; model.pt gets the card model.card.md beside it")
      ->required();

  PredictOptions predict;
  auto* predict_verb = app.add_subcommand("predict", "Answers of an exported model to files");
  predict_verb->add_option("--model", model, "What `ringfold export` wrote")->required();
  predict_verb->add_option("--digest", digest, "Refuse the model unless its SHA-256 is this");
  predict_verb
      ->add_option("files", predict.files,
                   "Images: PGM of 28 x 28, or IDX, compressed or not. Text: any; - is standard input")
      ->required();
  predict_verb->add_flag("--json", predict.json, "A JSON object a line");
  predict_verb->add_option("--bytes", predict.text.bytes, "Of text: go on for so many bytes")
      ->check(CLI::Range(0, 1 << 20));
  predict_verb
      ->add_option("--temperature", predict.text.temperature,
                   "Of text: 0 takes the likeliest byte, 1 draws as the model says")
      ->check(CLI::Range(0.0, 100.0));
  predict_verb->add_option("--seed", predict.text.seed, "Of text: of what is drawn");

  ServeOptions serving;
  auto* serve_verb = app.add_subcommand("serve", "Answer HTTP requests with JSON until SIGTERM or SIGINT");
  serve_verb->add_option("--model", model, "What `ringfold export` wrote")->required();
  serve_verb->add_option("--digest", digest, "Refuse the model unless its SHA-256 is this");
  serve_verb->add_option("--address", serving.address,
                         "Where to listen, numeric; port 0: a free one, which is printed");
  serve_verb->add_option("--key-file", key_file,
                         "Answer only requests with \"Authorization: Bearer KEY\", the file's first line");
  serve_verb->add_flag("--open", serving.open, "Listen at an address that other hosts reach, without a key");
  serve_verb->add_option("--max-body", serving.max_body_bytes, "Most bytes of a request")
      ->check(CLI::Range(size_t{1}, size_t{1} << 30));
  serve_verb->add_option("--timeout", serving.timeout_s, "Seconds for a request to arrive")
      ->check(CLI::Range(0.1, 3600.0));
  serve_verb->add_option("--threads", serving.threads, "That compute")->check(CLI::Range(1, 256));
  serve_verb->add_option("--connections", serving.max_connections, "Most at a time")->check(CLI::Range(1, 1000));
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    return app.exit(e) == 0 ? 0 : 2;
  }
  train::use_one_thread();

  if (*export_verb) {
    const auto done = train::export_model(model, out);
    if (!done.ok()) return fail(done.status());
    fmt::print("{}: SHA-256 {}\n{}\n", done->path, done->digest, done->card_path);
    return 0;
  }
  const auto predictor = train::Predictor::load(model, digest);
  if (!predictor.ok()) return fail(predictor.status());
  Status status;
  if (*predict_verb) {
    status = predict_files(*predictor, predict);
  } else {
    if (!key_file.empty()) {
      auto key = read_key(key_file);
      if (!key.ok()) return fail(key.status());
      serving.key = std::move(*key);
    }
    status = serve(*predictor, serving, [&](const std::string& url) {
      fmt::print("serving {} at {}\n", model, url);
      std::fflush(stdout);
    });
    if (status.ok()) fmt::print("asked to stop: no more requests\n");
  }
  return status.ok() ? 0 : fail(status);
}

}  // namespace ringfold::deploy
