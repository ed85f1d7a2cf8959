"""The trainable parts of PM1, by the name that a study's phases use."""
