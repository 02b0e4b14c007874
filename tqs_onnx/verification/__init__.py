"""Roll the emitted file out, judge it, and write down what was found."""
