// Predictions on files, printed to standard output.
#pragma once

#include <string>
#include <vector>

#include "ringfold/status.h"
#include "train/predictor.h"

namespace ringfold::deploy {

struct PredictOptions {
  // Of images: PGM (binary, 28 x 28), or IDX with many of them, compressed or not. Of text: any; "-" is standard
  // input.
  std::vector<std::string> files;
  train::Continuation text;  // bytes == 0: only how well the model predicts the file
  bool json = false;         // a JSON object a line
};
Status predict_files(const train::Predictor& predictor, const PredictOptions& options);

}  // namespace ringfold::deploy
