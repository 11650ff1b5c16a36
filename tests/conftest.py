"""Shared by all tests: shapes written in the losses' signatures are checked while the tests run, and only then."""

import jaxtyping

# Has to stand before anything imports the module; a wrong shape is then a jaxtyping.TypeCheckError.
jaxtyping.install_import_hook("trainer.learning.losses", "beartype.beartype")
