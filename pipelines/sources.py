"""A component's source as short as it can be: Kubeflow repeats it in seven nodes or more of every task's status.

Above 1 MiB of node status Argo stores it compressed, which Kubeflow's API does not read: its list of tasks freezes.
"""

import ast
import re
from collections.abc import Sequence

IMPORT = "from kfp import dsl"


def shorten(command: Sequence[str]) -> list[str]:
    """A lightweight component's command with the same function in it, without docstring, comments and blank lines.

    Args:
        command: sh, its option, kfp's script that starts the executor, and the source of the component.
    """
    *shell, script, source = command
    tree = ast.parse(source)
    # kfp imports all of itself and of typing for the annotations; ours are builtins and `dsl.`
    tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef) or ast.unparse(node) == IMPORT]
    for function in tree.body:
        if isinstance(function, ast.FunctionDef) and ast.get_docstring(function):
            del function.body[0]
    return [*shell, re.sub(" {2,}", " ", script), ast.unparse(tree)]
