#include "train/args.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "ringfold/codec.h"
#include "ringfold/pipeline.h"
#include "sync/power_sgd.h"
#include "train/agent.h"

namespace ringfold::train {

std::string describe_data(const Args& args) {
  if (!args.spec().is_text()) return "Fashion-MNIST (" + args.data + ")";
  return args.data.empty() ? "the King James Bible (Debian's bible-kjv)" : args.data;
}

std::optional<std::vector<size_t>> parse_stage_layers(const std::string& text) {
  std::vector<size_t> layers;
  for (const char* at = text.c_str();;) {
    size_t value = 0;
    const auto [end, error] = std::from_chars(at, text.c_str() + text.size(), value);
    if (error != std::errc() || value == 0) return std::nullopt;
    layers.push_back(value);
    if (*end == '\0') return layers;
    if (*end != ',') return std::nullopt;
    at = end + 1;
  }
}

namespace {

void add_agent_options(CLI::App& app, Args& args) {
  app.add_option(
         "--goal", args.goal,
         "Let the agent decide how to get there: accuracy=0.9 (on the test set), samples=1e6 or tokens=1e6. "
         "It measures ranks and links, prints what it considered, and chooses: ranks, --sync, --pipeline and "
         "--tensor-parallel (each of which, if given, holds), --codec, --batch and each rank's part of it. Then "
         "it watches the run and changes parts, codec, buckets, micro-batches and staleness; ranks that are "
         "lost are left out. docs/training.md says how it decides")
      ->group("The agent");
  app.add_option_function<std::string>(
         "--within",
         [&args](const std::string& text) {
           char unit = 's', rest = 0;
           const int read = std::sscanf(text.c_str(), "%lf%c%c", &args.within_s, &unit, &rest);
           const double of = unit == 's' ? 1 : unit == 'm' ? 60 : unit == 'h' ? 3600 : 0;
           if (read < 1 || read > 2 || of == 0 || !(args.within_s > 0) || args.within_s > 1e9)
             throw CLI::ValidationError("--within", "'" + text + "' is no time: 90s, 10m, 2h");
           args.within_s *= of;
         },
         "Stop training after this time: 90s, 10m, 2h; a goal of accuracy that is not reached by then is a failure")
      ->group("The agent");
  app.add_option("--max-ranks", args.max_ranks, "Use at most so many of the job's ranks")
      ->check(CLI::Range(1, 1 << 20))
      ->group("The agent");
  app.add_flag("--dry-run", args.dry_run, "Only measure and print the plan")->group("The agent");
}

void add_pipeline_options(CLI::App& app, Args& args) {
  app.add_option(
         "--pipeline", args.pipeline,
         "Ranks that share the layers of the model, each with some of them: its stages. The others are replicas "
         "of these; with --tensor-parallel each is a group that shares its layers")
      ->check(CLI::Range(1, 65536))
      ->group("Pipelines");
  std::vector<std::string> names;
  for (const auto& recipe : pipeline::recipes()) names.emplace_back(recipe.name);
  app.add_option("--pipeline-schedule", args.pipeline_schedule,
                 "Who computes what when (`ringfold pipeline` draws them): the gradients are the same, idle time and "
                 "memory differ")
      ->check(CLI::IsMember(names))
      ->group("Pipelines");
  app.add_option("--micro-batches", args.micro_batches,
                 "Parts that a replica's batch is cut into: more make ranks idle less (0: 4 for each rank of a "
                 "pipeline, as far as there are samples)")
      ->check(CLI::Range(0, 1 << 20))
      ->group("Pipelines");
  app.add_option("--pipeline-chunks", args.pipeline_chunks,
                 "Stages of each rank, for schedules that take several (0: as many as they usually have)")
      ->check(CLI::Range(0, 1 << 10))
      ->group("Pipelines");
  app.add_option("--pipeline-balance", args.pipeline_balance,
                 "What is alike on all stages, as far as can be: their parameters, the time they take (measured at "
                 "the start), or the number of layers. Or the layers of each stage: 3,2,2,3")
      ->check([](const std::string& text) {
        if (text == "parameters" || text == "time" || text == "layers") return std::string();
        return parse_stage_layers(text) ? std::string()
                                        : "'" + text + "' is neither parameters, time, layers nor numbers: 3,2,2,3";
      })
      ->group("Pipelines");
}

// What a goal means for the settings that were not given.
std::string apply_goal(const CLI::App& app, Args& args) {
  const auto given = [&](const char* option) { return app.count(option) > 0; };
  if (args.goal.empty()) {
    for (const char* option : {"--max-ranks", "--dry-run"}) {
      if (given(option)) return std::string(option) + " needs --goal";
    }
    return {};
  }
  for (const char* option :
       {"--codec", "--power-sgd", "--target-accuracy", "--bucket-kib", "--local-steps", "--staleness",
        "--delay-compensation", "--micro-batches", "--order-seed", "--record-order", "--replay-order"}) {
    if (given(option)) return std::string(option) + " with --goal: the agent decides that";
  }
  args.free_sync = !given("--sync");
  if (args.sync == "zero1") return "--sync zero1 with --goal: the agent knows ssgd, asgd, local and diloco";
  if (!args.checkpoint.empty())
    return "--checkpoint with --goal: a run that an agent changes cannot be resumed, yet; use --save";
  const auto goal = parse_goal(args.goal);
  if (!goal.ok()) return goal.status().message();
  if (goal->kind == Goal::Kind::kAccuracy) {
    args.target_accuracy = goal->value;
    // Nobody knows how many epochs it takes, so the learning rate cannot come down towards the last.
    if (!given("--epochs")) args.epochs = 30;
    if (!given("--epochs") && !given("--schedule")) args.schedule = "constant";
    if (!given("--epochs") && !given("--lr") && args.optimizer == "sgd") args.lr = 0.05;
    args.free_batch = !given("--batch") && args.optimizer == "sgd" && !args.spec().is_text();
    args.free_lr = !given("--lr");
    args.free_tests = !given("--test-every");
  } else {
    args.goal_samples = goal->value;
  }
  return {};
}

void add_sync_options(CLI::App& app, Args& args) {
  app.add_option(
         "--sync", args.sync,
         "How ranks keep together. ssgd: all gradients are summed in every step. zero1: the same steps, with "
         "each rank keeping 1/n of the optimiser's state. asgd: nobody waits; a parameter server on all ranks "
         "takes gradients as they come, up to --staleness. local: ranks step alone and average every "
         "--local-steps. diloco: the same, and the average is taken as a gradient by an outer optimiser, "
         "which bears many more steps between meetings")
      ->check(CLI::IsMember({"ssgd", "zero1", "asgd", "local", "diloco"}));
  app.add_option_function<std::string>(
         "--staleness",
         [&args](const std::string& text) {
           if (text == "inf") {
             args.staleness = -1;
             return;
           }
           size_t end = 0;
           long long value = -1;
           try {
             value = std::stoll(text, &end);
           } catch (const std::exception&) {
           }
           if (value < 0 || end != text.size() || value > 1'000'000)
             throw CLI::ValidationError("--staleness", "'" + text + "' is neither a number of steps nor inf");
           args.staleness = value;
         },
         "How many steps (of all ranks together) may have been made since the parameters that a gradient was "
         "computed "
         "with; inf: no bound; 0: synchronous. A rank that is f times slower than the others holds them up only when "
         "the bound is below f - 1")
      ->default_str("4")
      ->group("With --sync asgd");
  app.add_option(
         "--delay-compensation", args.delay_compensation,
         "Correct late gradients to first order, g + L g g (w_now - w_then) (0: off). L of 0.04 to 2 is usual; with "
         "--delay-compensation-gradients, the samples of one rank's part of a batch, or twice that")
      ->check(CLI::NonNegativeNumber)
      ->group("With --sync asgd");
  app.add_flag("--delay-compensation-adaptive", args.delay_compensation_adaptive,
               "Divide L by the gradients' root mean square, so that it does not depend on their scale")
      ->group("With --sync asgd");
  app.add_option("--delay-compensation-gradients", args.delay_compensation_gradients,
                 "g + L C (w_now - w_then) with C the covariance of this many gradients, the last ones (16 or 32), "
                 "which each server keeps of its part of the model")
      ->check(CLI::Range(2, 1024))
      ->group("With --sync asgd");
  app.add_option_function<uint64_t>(
         "--order-seed", [&args](uint64_t seed) { args.order_seed = seed; },
         "Draw the order of updates from a seed: the same bits in every run; ranks wait for their turn")
      ->group("With --sync asgd");
  app.add_option("--record-order", args.record_order, "File for the order of updates, written by rank 0")
      ->group("With --sync asgd");
  app.add_option("--replay-order", args.replay_order, "Follow such a file: the same bits as the run that wrote it")
      ->group("With --sync asgd");
  app.add_option(
         "--shard-replicas", args.shard_replicas,
         "Copies of each shard of the server on other ranks, so that a run survives the loss of as many ranks "
         "at a time; each update travels to all of them (if not told: 1 with --elastic, else 0)")
      ->check(CLI::Range(0, 1 << 20))
      ->group("With --sync asgd");
  app.add_option("--stall-timeout", args.stall_timeout_s, "Seconds that one rank may hold up the others")
      ->check(CLI::PositiveNumber)
      ->group("With --sync asgd");
  app.add_option("--local-steps", args.local_steps,
                 "Steps that a rank makes alone between two meetings (0: 10 with local, 50 with diloco)")
      ->check(CLI::Range(0, 1 << 30))
      ->group("With --sync local or diloco");
  app.add_option("--outer-lr", args.outer_lr, "How far the common model follows the average (0: 0.7; local: 1)")
      ->check(CLI::NonNegativeNumber)
      ->group("With --sync diloco");
  app.add_option_function<double>(
         "--outer-momentum", [&args](double m) { args.outer_momentum = m; },
         "Nesterov momentum of that (default: 0.9; local: 0)")
      ->check(CLI::Range(0.0, 0.999999))
      ->group("With --sync diloco");
  app.add_option("--fragments", args.fragments,
                 "Parts of the model that meet in turn: the same bytes, spread over time")
      ->check(CLI::Range(1, 1 << 20))
      ->group("With --sync local or diloco");
  app.add_option("--overlap-steps", args.overlap_steps, "Steps that are made while an average is on its way")
      ->check(CLI::Range(0, 1 << 30))
      ->group("With --sync local or diloco");
  app.add_option("--mix", args.mix, "Share of a rank's own parameters that is kept when a late average arrives")
      ->check(CLI::Range(0.0, 1.0))
      ->group("With --sync local or diloco");
  app.add_flag("--elastic", args.elastic,
               "When ranks are lost, the others go on without them, from the step in which it happened; otherwise "
               "the run ends. With --pipeline or --tensor-parallel they make as many whole replicas as they can");
  app.add_option_function<std::string>(
         "--slow-rank",
         [&args](const std::string& text) {
           char rest = 0;
           if (std::sscanf(text.c_str(), "%d:%lf%c", &args.slow_rank, &args.slow_factor, &rest) != 2 ||
               args.slow_rank < 0 || !(args.slow_factor >= 1) || args.slow_factor > 1e6)
             throw CLI::ValidationError("--slow-rank",
                                        "'" + text + "' is not RANK:FACTOR with a factor of at least 1");
         },
         "RANK:FACTOR. That rank's computing takes so many times as long (it sleeps)")
      ->group("For experiments");
}

// Options that do not belong to the strategy, or to each other; empty: fine.
std::string contradiction(const CLI::App& app, const Args& args) {
  const auto given = [&](const char* option) { return app.count(option) > 0; };
  const struct {
    const char* option;
    std::vector<std::string> with;
  } rules[] = {
      {"--staleness", {"asgd"}},
      {"--delay-compensation", {"asgd"}},
      {"--delay-compensation-adaptive", {"asgd"}},
      {"--delay-compensation-gradients", {"asgd"}},
      {"--order-seed", {"asgd"}},
      {"--record-order", {"asgd"}},
      {"--replay-order", {"asgd"}},
      {"--stall-timeout", {"asgd"}},
      {"--local-steps", {"local", "diloco"}},
      {"--fragments", {"local", "diloco"}},
      {"--overlap-steps", {"local", "diloco"}},
      {"--mix", {"local", "diloco"}},
      {"--outer-lr", {"diloco"}},
      {"--outer-momentum", {"diloco"}},
      {"--shard-replicas", {"asgd"}},
      {"--elastic", {"ssgd", "asgd", "local", "diloco"}},
      {"--power-sgd", {"ssgd"}},
      {"--bucket-kib", {"ssgd", "zero1"}},
      {"--check-every", {"ssgd", "zero1"}},
      {"--codec", {"ssgd", "zero1", "local", "diloco"}},
  };
  for (const auto& rule : rules) {
    if (!given(rule.option) || std::find(rule.with.begin(), rule.with.end(), args.sync) != rule.with.end()) continue;
    std::string with;
    for (const auto& name : rule.with) with += (with.empty() ? "" : " or ") + name;
    return std::string(rule.option) + " has no meaning with --sync " + args.sync + ": it is for --sync " + with;
  }
  for (const char* option : {"--checkpoint-every", "--resume"}) {
    if (given(option) && args.checkpoint.empty()) return std::string(option) + " needs --checkpoint FOLDER";
  }
  if (args.resume && given("--replay-order"))
    return "--replay-order begins at the beginning of a run: not with --resume";
  if (args.elastic && args.cut() && args.sync != "ssgd") {
    return std::string("--elastic with ") + (args.pipeline > 1 ? "--pipeline" : "--tensor-parallel") +
           " and --sync " + args.sync +
           ": the parts of a model must be those of one step, which ssgd alone sees to; take --sync ssgd, "
           "or --checkpoint";
  }
  if (args.slow_rank >= 0 && args.pipeline > 1)
    return "--slow-rank with --pipeline: a rank's waiting for its neighbours would be made longer, too";
  for (const char* option : {"--pipeline-schedule", "--micro-batches", "--pipeline-chunks", "--pipeline-balance"}) {
    if (given(option) && args.pipeline == 1) return std::string(option) + " needs --pipeline of 2 ranks or more";
  }
  if (args.sync == "asgd" && args.pipeline > 1)
    return "--sync asgd with --pipeline: replicas step at their own pace, and the ranks of a pipeline have to step "
           "together; take another --sync";
  if (args.elastic && (given("--record-order") || given("--replay-order")))
    return "--elastic with --record-order or --replay-order: the order that the ranks follow is lost with rank 0";
  if (given("--order-seed") && given("--replay-order"))
    return "--order-seed and --replay-order both say who updates when: give one of them";
  if (args.sync == "asgd" && args.optimizer != "sgd" && args.staleness != 0) {
    return "--sync asgd with --optimizer " + args.optimizer +
           ": the length of Adam's steps does not depend on the gradient's, so n "
           "ranks that update one after another would go n times as far; use --optimizer sgd, or --staleness 0";
  }
  if (given("--delay-compensation-adaptive") && args.delay_compensation == 0)
    return "--delay-compensation-adaptive needs --delay-compensation";
  if (given("--delay-compensation-gradients") && args.delay_compensation == 0)
    return "--delay-compensation-gradients needs --delay-compensation";
  if (given("--delay-compensation-gradients") && given("--delay-compensation-adaptive"))
    return "--delay-compensation-adaptive is of a diagonal: without --delay-compensation-gradients";
  if (given("--delay-compensation") && args.staleness == 0)
    return "--delay-compensation with --staleness 0: nothing is late";
  if (given("--mix") && args.overlap_steps == 0) return "--mix needs --overlap-steps: otherwise no average is late";
  if (args.fragments > args.local_step_count() || args.overlap_steps >= args.local_step_count()) {
    return "--fragments can be at most --local-steps (" + std::to_string(args.local_step_count()) +
           "), and --overlap-steps must be below";
  }
  return {};
}

// Prints the help that was asked for, or what is wrong.
int end_with(const CLI::App& app, const CLI::Error& error) { return app.exit(error) == 0 ? 0 : kWrongArguments; }

}  // namespace

std::optional<int> parse_args(int argc, char** argv, Args& args) {
  CLI::App app(
      "Trains a classifier of Fashion-MNIST or a transformer on text, data-parallel: each rank has a part of every "
      "batch. Each rank of a job "
      "started by `ringfold run -n N --` runs it (`ringfold train --ranks N` does both); alone, it is a job of one "
      "rank. How ranks keep together is --sync; docs/training.md says when to use which.",
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
  add_pipeline_options(app, args);
  auto* epochs =
      app.add_option("--epochs", args.epochs, "Passes over the training set; a transformer makes 1 if not told")
          ->check(CLI::Range(1, 1'000'000));
  auto* batch = app.add_option("--batch", args.batch,
                               "Samples a step, of all ranks together; a transformer takes 16 if not told")
                    ->check(CLI::Range(1, 1 << 30));
  app.add_option("--seed", args.seed, "Of the initial parameters and of the order of the samples");
  auto* optimizer =
      app.add_option("--optimizer", args.optimizer, "Update rule; a transformer takes adamw if not told")
          ->check(CLI::IsMember({"sgd", "adam", "adamw"}));
  app.add_option("--lr", args.lr, "Peak learning rate (0: 0.1 with sgd, 0.002 with adam and adamw)")
      ->check(CLI::NonNegativeNumber);
  app.add_option("--schedule", args.schedule, "Of the learning rate; cosine: warm-up, then down to 0")
      ->check(CLI::IsMember({"cosine", "constant"}));
  app.add_option("--momentum", args.momentum, "Of sgd")->check(CLI::Range(0.0, 1.0));
  auto* decay = app.add_option("--weight-decay", args.weight_decay, "A transformer takes 0.1 if not told")
                    ->check(CLI::NonNegativeNumber);
  app.add_option(
      "--data", args.data,
      "Folder with Fashion-MNIST's four files, or a transformer's text: any file, of which the last tenth is for "
      "testing (if not told, what Debian's packages dataset-fashion-mnist and bible-kjv hold)");
  app.add_option("--limit-samples", args.limit_samples,
                 "Use only the first so many training and test samples (0: all)");
  app.add_option("--target-accuracy", args.target_accuracy,
                 "Stop once the test accuracy is this; exit with 1 if it never is")
      ->check(CLI::Range(0.0, 1.0));
  app.add_option("--eval-every", args.eval_every, "Epochs between tests; the last epoch is always tested")
      ->check(CLI::Range(1, 1'000'000));
  app.add_option(
         "--test-every", args.test_every,
         "Samples between tests within an epoch, beside those at its end (0: none; with --goal accuracy a third "
         "of the samples, if not told). What is trained with --sync asgd, local and diloco is merged for each")
      ->check(CLI::Range(size_t{0}, size_t{1} << 40));
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
  add_agent_options(app, args);
  add_sync_options(app, args);
  app.add_option("--device", args.device,
                 "Where the model computes: cuda (the rank's GPU), cuda:N; cpu: with the copies that a GPU needs, on "
                 "the processor. Gradients are reduced on the device, the optimizer is the host's");
  app.add_flag("--background", args.background, "A thread drives communication: for hosts with spare cores");
  app.add_option("--json", args.json, "Log file, one JSON object a line, written by rank 0");
  app.add_option(
      "--record-samples", args.record_samples,
      "Folder: each rank appends to a file of its own which samples it computed in which step (a line: how "
      "often the ranks had changed, the step, the samples), to see what a lost rank cost");
  app.add_option("--save", args.save, "File for the trained model, written by rank 0");
  app.add_option(
      "--checkpoint", args.checkpoint,
      "Folder for checkpoints, which all ranks see: model, optimiser, what codes missed, and the place in the "
      "data. The two newest are kept. SIGTERM then saves and ends the run (exit code 143)");
  app.add_option("--checkpoint-every", args.checkpoint_every,
                 "Steps between them (0: after each epoch; --sync asgd: always at the end of an epoch)")
      ->check(CLI::Range(size_t{0}, size_t{1} << 40));
  app.add_flag(
      "--resume", args.resume,
      "Go on from the newest checkpoint in the folder, on any number of ranks; from the beginning if there is "
      "none");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    return end_with(app, e);
  }
  if (args.spec().is_text()) {
    if (!epochs->count()) args.epochs = 1;
    if (!batch->count()) args.batch = 16;
    if (!optimizer->count()) args.optimizer = "adamw";
    if (!decay->count()) args.weight_decay = 0.1;
  } else {
    for (const CLI::Option* option : of_transformers) {
      if (option->count())
        return end_with(app, CLI::ValidationError(option->get_name(), "is for --model transformer"));
    }
    if (args.data.empty()) args.data = "/usr/share/datasets/fashion-mnist";
  }
  if (const Status valid = check(args.spec(), args.tensor_parallel); !valid.ok())
    return end_with(app, CLI::ValidationError(valid.message()));
  if (const std::string wrong = apply_goal(app, args); !wrong.empty())
    return end_with(app, CLI::ValidationError(wrong));
  if (const std::string wrong = contradiction(app, args); !wrong.empty()) {
    return end_with(app, CLI::ValidationError(wrong));
  }
  return std::nullopt;
}

}  // namespace ringfold::train
