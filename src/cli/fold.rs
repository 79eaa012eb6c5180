//! Paths of modules with equal layers taken together: `model.layers.0-3,5.mlp`.

use std::collections::BTreeSet;

/// `path` around its first number: `model.layers.`, 3, `.mlp`.
fn split(path: &str) -> Option<(&str, usize, &str)> {
    let mut start = 0;
    for part in path.split('.') {
        let end = start + part.len();
        if let Ok(layer) = part.parse() {
            return Some((&path[..start], layer, &path[end..]));
        }
        start = end + 1;
    }
    None
}

/// Numbers as ranges: `0-3,5`.
fn ranges(numbers: &BTreeSet<usize>) -> String {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for &number in numbers {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => runs.push((number, number)),
        }
    }
    let run = |(first, last)| {
        if first == last { format!("{first}") } else { format!("{first}-{last}") }
    };
    runs.into_iter().map(run).collect::<Vec<_>>().join(",")
}

/// Rows whose paths differ in their layer alone and that agree in everything else, as one row each; in order of
/// first appearance.
pub(super) fn fold<'a, T: PartialEq>(
    rows: impl IntoIterator<Item = (&'a str, T)>,
) -> Vec<(String, T)> {
    struct Group<'a, T> {
        before: &'a str,
        layers: BTreeSet<usize>,
        after: &'a str,
        rest: T,
    }
    let mut groups: Vec<Group<'a, T>> = Vec::new();
    for (path, rest) in rows {
        let (before, layer, after) = split(path)
            .map_or((path, None, ""), |(before, layer, after)| (before, Some(layer), after));
        let same = |group: &&mut Group<'a, T>| {
            group.before == before
                && group.after == after
                && group.layers.is_empty() == layer.is_none()
                && group.rest == rest
        };
        match groups.iter_mut().find(same) {
            Some(group) => group.layers.extend(layer),
            None => {
                groups.push(Group { before, layers: layer.into_iter().collect(), after, rest });
            }
        }
    }
    groups
        .into_iter()
        .map(|group| {
            let path = format!("{}{}{}", group.before, ranges(&group.layers), group.after);
            (path, group.rest)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fold_joins_layers_that_agree() {
        let rows = [
            ("model.embed_tokens", "stock"),
            ("model.layers.0.mlp", "fused"),
            ("model.layers.0.self_attn", "fused"),
            ("model.layers.1.mlp", "stock"),
            ("model.layers.1.self_attn", "fused"),
            ("model.layers.2.mlp", "fused"),
            ("model.layers.2.self_attn", "fused"),
            ("model.layers.10.mlp", "fused"),
            ("model.layers.10.self_attn", "fused"),
            ("lm_head", "fused"),
        ];
        let folded = [
            ("model.embed_tokens", "stock"),
            ("model.layers.0,2,10.mlp", "fused"),
            ("model.layers.0-2,10.self_attn", "fused"),
            ("model.layers.1.mlp", "stock"),
            ("lm_head", "fused"),
        ];
        assert_eq!(fold(rows), folded.map(|(path, rest)| (path.to_owned(), rest)));
    }

    #[test]
    fn fold_joins_by_the_first_number_alone() {
        let rows = [("layers.0.experts.1.up", ()), ("layers.1.experts.1.up", ())];
        assert_eq!(fold(rows), [("layers.0-1.experts.1.up".to_owned(), ())]);
        let rows = [("layers.0.experts.1.up", ()), ("layers.0.experts.2.up", ())];
        assert_eq!(fold(rows).len(), 2);
    }
}
