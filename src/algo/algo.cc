namespace ringfold::algo {}
