"""Songs with known stems on their way to excerpts: data sets, the decode cache, crops and augmentation."""
