"""What is installed: `emolake.pipeline`, `emolake.actors` and `emolake.jobs`, links to the folders beside
this one. Nothing else of a checkout lands in anybody's site-packages, and every tool that follows paths
(mypy, editors, Ray's upload of a working directory) finds the same names as an installed wheel has."""
