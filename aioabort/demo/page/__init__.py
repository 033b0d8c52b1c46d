"""A page over ``aioabort.web``: start runs, see them, abort them."""
