"""scikit-learn's classifiers behind one call: fit on raw counts, predict probabilities."""
