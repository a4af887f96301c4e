#include "train/args.h"

#include <CLI/CLI.hpp>
#include <cstdlib>
#include <vector>

#include "ringfold/codec.h"
#include "sync/power_sgd.h"

namespace ringfold::train {

std::string describe_data(const Args& args) {
  if (!args.spec().is_text()) return "Fashion-MNIST (" + args.data + ")";
  return args.data.empty() ? "the King James Bible (Debian's bible-kjv)" : args.data;
}

std::optional<int> parse_args(int argc, char** argv, Args& args) {
  CLI::App app(
      "Trains a classifier of Fashion-MNIST, or a transformer on text, with synchronous data-parallel SGD. Each rank of a job started by "
      "`ringfold run -n N --` "
      "runs it (`ringfold train --ranks N` does both); alone, it is a job of one rank.",
      "ringfold-train");
  app.option_defaults()->always_capture_default();
  app.add_option("--model", args.model, "What to train: classifiers of images, or a transformer that predicts bytes")
      ->check(CLI::IsMember({"mlp", "cnn", "transformer"}));
  std::vector<CLI::Option*> of_transformers = {
      app.add_option("--layers", args.layers, "Of a transformer"),
      app.add_option("--width", args.width, "Of a transformer: values per byte between layers"),
      app.add_option("--heads", args.heads, "Of a transformer: heads of attention"),
      app.add_option("--context", args.context, "Of a transformer: bytes that it sees, and the length of a sample"),
  };
  app.add_option("--tensor-parallel", args.tensor_parallel,
                 "Ranks that share each layer of a transformer; the others are replicas of these")
      ->check(CLI::Range(1, 65536));
  auto* epochs = app.add_option("--epochs", args.epochs, "Passes over the training set; a transformer makes 1 if not told")
                     ->check(CLI::Range(1, 1'000'000));
  auto* batch = app.add_option("--batch", args.batch, "Samples a step, of all ranks together; a transformer takes 16 if not told")
                    ->check(CLI::Range(1, 1 << 30));
  app.add_option("--seed", args.seed, "Of the initial parameters and of the order of the samples");
  auto* optimizer = app.add_option("--optimizer", args.optimizer, "Update rule; a transformer takes adamw if not told")
                        ->check(CLI::IsMember({"sgd", "adam", "adamw"}));
  app.add_option("--lr", args.lr, "Peak learning rate (0: 0.1 with sgd, 0.002 with adam and adamw)")
      ->check(CLI::NonNegativeNumber);
  app.add_option("--schedule", args.schedule, "Of the learning rate; cosine: warm-up, then down to 0")
      ->check(CLI::IsMember({"cosine", "constant"}));
  app.add_option("--momentum", args.momentum, "Of sgd")->check(CLI::Range(0.0, 1.0));
  auto* decay = app.add_option("--weight-decay", args.weight_decay, "A transformer takes 0.1 if not told")
                    ->check(CLI::NonNegativeNumber);
  app.add_option("--data", args.data,
                 "Folder with Fashion-MNIST's four files, or a transformer's text: any file, of which the last tenth is for "
                 "testing (if not told, what Debian's packages dataset-fashion-mnist and bible-kjv hold)");
  app.add_option("--limit-samples", args.limit_samples,
                 "Use only the first so many training and test samples (0: all)");
  app.add_option("--target-accuracy", args.target_accuracy,
                 "Stop once the test accuracy is this; exit with 1 if it never is")
      ->check(CLI::Range(0.0, 1.0));
  app.add_option("--eval-every", args.eval_every, "Epochs between tests; the last epoch is always tested")
      ->check(CLI::Range(1, 1'000'000));
  app.add_option("--check-every", args.check_every, "Steps between replica checks (0: at the end of each epoch only)")
      ->check(CLI::Range(0, 1 << 30));
  app.add_option("--log-every", args.log_every, "Steps between losses over all ranks")->check(CLI::Range(1, 1 << 30));
  app.add_option("--bucket-kib", args.bucket_kib, "Size of a bucket of gradients")->check(CLI::Range(1, 1 << 20));
  if (const char* variable = std::getenv("RINGFOLD_CODEC"); variable != nullptr && *variable != '\0')
    args.codec = variable;
  auto* codec = app.add_option(
      "--codec", args.codec,
      "Encode gradients on links: bf16, int8, int6, int5, int4, e4m3, ..., sign, ternary, topk:0.01; auto: int8 "
      "where the "
      "links, measured at the start, are slower than the codec; auto:int4. What a code misses is added to the next "
      "step's gradients. Biases travel whole. int8 sends a quarter of the bytes. Default: RINGFOLD_CODEC, else none");
  codec->check([](const std::string& text) {
    const auto parsed = parse_codec(text);
    return parsed.ok() ? std::string() : parsed.status().message();
  });
  app.add_flag("!--no-error-feedback", args.error_feedback, "Drop what codes miss, to see what that costs");
  auto* power = app.add_option(
      "--power-sgd", args.power_sgd,
      "Compress gradients (PowerSGD): ranks exchange each weight matrix as a product of two thin ones, of this rank, "
      "and "
      "add what a step leaves out to the next. For slow links: 1 sends least, 2 or 4 follow whole gradients more "
      "closely; the log's bytes_per_step says what it saves. All of it happens after backward, so fast links gain "
      "nothing (0: whole gradients, in buckets during backward)");
  power->excludes(codec);
  power->check(CLI::Range(size_t{0}, sync::PowerSgd::kMaxRank));
  app.add_option("--power-sgd-warm-up", args.power_sgd_warm_up,
                 "Steps with whole gradients before compression begins: for runs whose first steps go astray")
      ->check(CLI::Range(0, 1 << 30))
      ->needs(power);
  app.add_flag("--background", args.background, "A thread drives communication: for hosts with spare cores");
  app.add_option("--json", args.json, "Log file, one JSON object a line, written by rank 0");
  app.add_option("--save", args.save, "File for the trained model, written by rank 0");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    return app.exit(e);
  }
  if (args.spec().is_text()) {
    if (!epochs->count()) args.epochs = 1;
    if (!batch->count()) args.batch = 16;
    if (!optimizer->count()) args.optimizer = "adamw";
    if (!decay->count()) args.weight_decay = 0.1;
  } else {
    for (const CLI::Option* option : of_transformers) {
      if (option->count()) return app.exit(CLI::ValidationError(option->get_name(), "is for --model transformer"));
    }
    if (args.data.empty()) args.data = "/usr/share/datasets/fashion-mnist";
  }
  if (const Status valid = check(args.spec(), args.tensor_parallel); !valid.ok())
    return app.exit(CLI::ValidationError(valid.message()));
  return std::nullopt;
}

}  // namespace ringfold::train
