"""For the site: a name that a package exports is what it exports, also where a submodule has the same name.

`jbp.stats.norms` is the function, since `jbp/stats/__init__.py` imports it from the module `norms`. Griffe, which reads
the sources for the site, takes the module; without this, the reference would show the module's inside.
"""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import griffe


class PublicNames(griffe.Extension):
    """Puts what is exported in the place of the submodule that hides it."""

    def on_package(self, *, pkg: griffe.Module, **others: Any) -> None:
        """Called once the package is read."""
        modules = list(_modules(pkg))
        exported = {
            module.modules[name].path: target.removeprefix(f"{pkg.path}.")
            for module in modules
            for name, target in module.imports.items()
            if target.startswith(f"{module.path}.{name}.") and name in module.modules
        }
        places = [(module, name, member) for module in modules for name, member in module.members.items()]
        for _, _, member in places:  # while what lies in the hidden modules is still found by its path
            if isinstance(member, griffe.Alias) and member.target_path not in exported:
                with suppress(griffe.AliasResolutionError, griffe.CyclicAliasError):  # another package's, or a circle
                    member.resolve_target()
        found = {path: pkg[target] for path, target in exported.items()}
        for module, name, member in places:
            path = member.target_path if isinstance(member, griffe.Alias) else member.path
            if path in found:
                module.members[name] = griffe.Alias(name, found[path], parent=module)


def _modules(module: griffe.Module) -> Iterator[griffe.Module]:
    yield module
    for member in module.modules.values():
        if not member.is_alias:
            yield from _modules(member)
