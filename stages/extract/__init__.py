"""The stage `extract`: the frozen upstream extractor, fitted on train and applied to every split."""
