"""Does dropout beat overfitting? The same net at several rates and seeds, on few and on all training rows."""
