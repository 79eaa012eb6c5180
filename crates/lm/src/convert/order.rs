//! The order of tensors, which decides where files are cut.

use crate::weights::Planned;

/// Names in a module, by the last part of its path that is no number.
type Order = [(&'static str, &'static [&'static str])];

/// A module: its weights, and the modules in it.
#[derive(Default)]
struct Node {
    weights: Vec<Planned>,
    children: Vec<(String, Node)>,
}

/// Weights with what `order` names in its order; other weights come first in their module, other modules last, as they
/// come.
pub(super) fn sorted(planned: Vec<Planned>, order: &Order) -> Vec<Planned> {
    let mut root = Node::default();
    for weight in planned {
        let path = weight.module().to_owned();
        let mut node = &mut root;
        for name in path.split('.') {
            let at = node.children.iter().position(|(held, _)| held == name);
            let at = at.unwrap_or_else(|| {
                node.children.push((name.to_owned(), Node::default()));
                node.children.len() - 1
            });
            node = &mut node.children[at].1;
        }
        node.weights.push(weight);
    }
    let mut sorted = Vec::new();
    flatten(root, "", order, &mut sorted);
    sorted
}

enum Part {
    Weight(Planned),
    Child(String, Node),
}

fn flatten(node: Node, name: &str, order: &Order, sorted: &mut Vec<Planned>) {
    let names =
        order.iter().find(|(parent, _)| *parent == name).map_or(&[][..], |(_, names)| names);
    let rank = |name: &str| names.iter().position(|n| *n == name);
    let weights = node.weights.into_iter().map(|weight| {
        let rank = rank(weight.name());
        (rank.map_or(0, |rank| rank + 1), Part::Weight(weight))
    });
    let children = node
        .children
        .into_iter()
        .map(|(name, child)| (rank(&name).unwrap_or(names.len()) + 1, Part::Child(name, child)));
    let mut parts: Vec<_> = weights.chain(children).collect();
    parts.sort_by_key(|(rank, _)| *rank);
    for (_, part) in parts {
        match part {
            Part::Weight(weight) => sorted.push(weight),
            Part::Child(child, node) => {
                let is_number = child.bytes().all(|b| b.is_ascii_digit());
                flatten(node, if is_number { name } else { &child }, order, sorted);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use mlx::Dtype;

    use super::*;
    use crate::rewrite::Tensor;

    #[test]
    fn named_modules_come_first_in_their_order_and_others_as_they_came() {
        let names = [
            "b.1.y.w",
            "b.1.x.w",
            "b.1.z.w",
            "b.1.n",
            "b.1.m",
            "b.0.x.w",
            "a.w",
            "b.1.x.bias",
            "b.0.y.w",
        ];
        let float = |name: &&str| Planned::Float {
            name: (*name).to_owned(),
            tensor: Tensor::blank(name, &[], Dtype::F32),
        };
        let planned = names.iter().map(float).collect();
        let got: Vec<String> = sorted(planned, &[("b", &["z", "n", "x"]), ("", &["a"])])
            .iter()
            .map(|weight| match weight {
                Planned::Float { name, .. } => name.clone(),
                _ => unreachable!(),
            })
            .collect();
        let expected = [
            "a.w",
            "b.1.m",
            "b.1.z.w",
            "b.1.n",
            "b.1.x.w",
            "b.1.x.bias",
            "b.1.y.w",
            "b.0.x.w",
            "b.0.y.w",
        ];
        assert_eq!(got, expected);
    }
}
