//! Circles in a graph: its strongly connected parts of more than one node.

use std::collections::{BTreeMap, BTreeSet};

/// Each circle's nodes. The graphs here are small: what a node reaches is looked for anew.
pub fn circles<N: Ord + Clone>(graph: &BTreeMap<N, Vec<N>>) -> Vec<Vec<N>> {
    let reached: BTreeMap<&N, BTreeSet<&N>> = graph
        .keys()
        .map(|node| (node, reach(graph, node)))
        .collect();
    let mut found: Vec<Vec<N>> = Vec::new();
    for node in graph.keys() {
        let back = |other: &&&N| {
            reached
                .get(**other)
                .is_some_and(|there| there.contains(node))
        };
        let circle: Vec<N> = reached[node]
            .iter()
            .filter(back)
            .map(|n| (*n).clone())
            .collect();
        if !circle.is_empty() && !found.contains(&circle) {
            found.push(circle);
        }
    }
    found
}

fn reach<'a, N: Ord>(graph: &'a BTreeMap<N, Vec<N>>, from: &N) -> BTreeSet<&'a N> {
    let mut seen = BTreeSet::new();
    let mut next: Vec<&N> = graph.get(from).into_iter().flatten().collect();
    while let Some(node) = next.pop() {
        if seen.insert(node) {
            next.extend(graph.get(node).into_iter().flatten());
        }
    }
    seen
}

#[test]
fn a_circle_is_found_and_a_diamond_is_none() {
    let graph = |edges: &[(u8, u8)]| {
        let mut graph: BTreeMap<u8, Vec<u8>> = BTreeMap::new();
        for &(from, to) in edges {
            graph.entry(from).or_default().push(to);
        }
        graph
    };
    assert!(circles(&graph(&[(1, 2), (1, 3), (2, 4), (3, 4)])).is_empty());
    let found = circles(&graph(&[(1, 2), (2, 3), (3, 2), (3, 4)]));
    assert_eq!(found, [vec![2, 3]]);
}
