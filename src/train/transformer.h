// A decoder-only transformer over bytes, cut by attention heads and hidden values among the ranks of a tensor group.
#pragma once

#include "train/about.h"
#include "train/model.h"

namespace ringfold::train {

// Appends 1 + spec.layers + 1 layers: embedding [n, t] -> [n, t, width], blocks [n, t, width] -> [n, t, width], and
// the logits of the byte that follows each [n, t, 256].
void append_transformer(Model& model, Builder& builder, const ModelSpec& spec);

}  // namespace ringfold::train
