// A trained model as one TorchScript file, for Ringfold's own predictor and for any program with libtorch or PyTorch.
// Free of libtorch's headers.
#pragma once

#include <string>

#include "ringfold/status.h"

namespace ringfold::train {

struct Exported {
  std::string path, card_path;
  std::string digest;  // SHA-256 of the file at `path`
};

// `model` is a file that `ringfold train --save` wrote. Writes `path`, and beside it a card in Markdown ("model.pt"
// -> "model.card.md"). The TorchScript is run beside the model that was trained, and refused (kInternal) if it
// answers otherwise; images come as grey values from 0 to 255, since how they are scaled is part of it. kIo, kInvalid
// for files.
Result<Exported> export_model(const std::string& model, const std::string& path);

}  // namespace ringfold::train
