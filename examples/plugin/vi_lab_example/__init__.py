"""An estimator, a latent and a data set for vi_lab, as a package of their own."""
