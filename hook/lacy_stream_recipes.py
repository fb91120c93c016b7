"""Lets Python run a recipe: ``python recipe.yaml``, and so ``composer recipe.yaml``, whose launcher does just that.

Python asks ``sys.path_hooks`` whether the file it was told to run is a place to import from; if so, it imports
``__main__`` from there. This hook claims existing files that end in .yaml or .yml and hands them to
``lacy_stream.__main__``. It is installed by a .pth file beside it (.start for Python 3.15 and later), runs at
every start of this interpreter, and therefore imports nothing but sys and does nothing but append one function.
"""

import sys


class _RecipeFinder:
    """Finds one module, ``__main__``, in one recipe."""

    def __init__(self, path):
        self.path = path

    def find_spec(self, name, target=None):
        if name != "__main__":
            return None
        from importlib.machinery import ModuleSpec

        return ModuleSpec(name, self, origin=self.path)

    def get_code(self, name):
        source = "import sys\nfrom lacy_stream.__main__ import main\nsys.exit(main([{!r}, *sys.argv[1:]]))\n"
        return compile(source.format(self.path), "<recipe>", "exec")


def _hook(path):
    if isinstance(path, str) and path.endswith((".yaml", ".yml")):
        import os

        if os.path.isfile(path):
            return _RecipeFinder(path)
    raise ImportError(path)


def install():
    if _hook not in sys.path_hooks:
        sys.path_hooks.append(_hook)
