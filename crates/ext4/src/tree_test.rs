//! Paths, links and layers.

use crate::error::{Error, Result};
use crate::tree::{Kind, Metadata, Node, ROOT, Tree};

fn tree() -> Tree {
    Tree::new(1000, 0)
}

fn folder(tree: &mut Tree, path: &str) -> Result<usize> {
    let node = tree.make(&Metadata::default(), Vec::new(), Kind::Directory(Default::default()));
    tree.put(path.as_bytes(), node)
}

fn link(tree: &mut Tree, path: &str, target: &str) -> Result<usize> {
    let node = tree.make(&Metadata::default(), Vec::new(), Kind::Symlink(target.into()));
    tree.put(path.as_bytes(), node)
}

fn file(tree: &mut Tree, path: &str) -> Result<usize> {
    let node = tree.make(&Metadata::default(), Vec::new(), Kind::File { size: 0, extents: Vec::new() });
    tree.put(path.as_bytes(), node)
}

/// All paths, folders with a slash.
fn all(tree: &Tree) -> Vec<String> {
    fn walk(tree: &Tree, node: usize, path: &str, to: &mut Vec<String>) {
        let Some(Node { kind: Kind::Directory(entries), .. }) = tree.node(node) else { return };
        for (name, child) in entries {
            let name = format!("{path}{}", String::from_utf8_lossy(name));
            match tree.node(*child).unwrap().kind {
                Kind::Directory(_) => {
                    to.push(format!("{name}/"));
                    walk(tree, *child, &format!("{name}/"), to);
                }
                _ => to.push(name),
            }
        }
    }
    let mut paths = Vec::new();
    walk(tree, ROOT, "", &mut paths);
    paths
}

#[test]
fn paths_stay_inside() {
    let mut it = tree();
    for bad in ["../etc", "a/../b", "a/..", &"x".repeat(256), &"a/".repeat(3000), "zero\0byte"] {
        assert!(matches!(file(&mut it, bad), Err(Error::Name { .. })), "{bad}");
    }
    assert!(all(&it).is_empty());
    file(&mut it, "//etc/./passwd").unwrap();
    assert_eq!(all(&it), ["etc/", "etc/passwd"]);
    assert!(file(&mut it, "/").is_err() && file(&mut it, ".").is_err());
    folder(&mut it, "./").unwrap();
}

#[test]
fn links_in_paths_lead_into_the_tree() {
    let mut it = tree();
    folder(&mut it, "usr/lib").unwrap();
    link(&mut it, "lib", "usr/lib").unwrap();
    link(&mut it, "out", "../../../../usr").unwrap();
    link(&mut it, "absolute", "/usr").unwrap();
    link(&mut it, "dangling", "/var/nothing").unwrap();
    file(&mut it, "lib/a").unwrap();
    file(&mut it, "out/b").unwrap();
    file(&mut it, "absolute/lib/c").unwrap();
    file(&mut it, "dangling/d").unwrap();
    let paths = all(&it);
    for path in ["usr/lib/a", "usr/b", "usr/lib/c", "var/nothing/d"] {
        assert!(paths.iter().any(|p| p == path), "{path} in {paths:?}");
    }
    link(&mut it, "x", "y").unwrap();
    link(&mut it, "y", "x").unwrap();
    assert!(file(&mut it, "x/f").is_err());
    file(&mut it, "plain").unwrap();
    assert!(file(&mut it, "plain/f").is_err());
    // The last part of a path is what is replaced, not what it leads to.
    file(&mut it, "lib").unwrap();
    assert!(all(&it).contains(&"usr/lib/a".to_owned()));
}

#[test]
fn hard_links_are_names_of_files_that_are_there() {
    let mut it = tree();
    assert!(it.link(b"a", b"b").is_err());
    folder(&mut it, "folder").unwrap();
    assert!(it.link(b"a", b"folder").is_err() && it.link(b"a", b"../x").is_err());
    let number = file(&mut it, "b").unwrap();
    it.link(b"a", b"b").unwrap();
    it.link(b"a", b"b").unwrap();
    assert_eq!(it.node(number).unwrap().links, 2);
    it.remove(b"b").unwrap();
    assert_eq!(it.node(number).unwrap().links, 1);
    // Onto what holds the target.
    file(&mut it, "folder/t").unwrap();
    it.link(b"folder", b"folder/t").unwrap();
    assert_eq!(all(&it), ["a", "folder"]);
}

#[test]
fn layers_hide_what_is_below() {
    let mut it = tree();
    for path in ["d/old", "d/sub/old", "d/gone/deep/x", "e/old"] {
        file(&mut it, path).unwrap();
    }
    it.begin_layer();
    file(&mut it, "d/new").unwrap();
    file(&mut it, "d/sub/new").unwrap();
    it.clear(b"d").unwrap();
    it.remove(b"e/old").unwrap();
    it.remove(b"never/there").unwrap();
    it.clear(b"never").unwrap();
    assert_eq!(all(&it), ["d/", "d/new", "d/sub/", "d/sub/new", "e/"]);
    // A folder takes the place of a file, and a file that of a folder.
    folder(&mut it, "d/new").unwrap();
    file(&mut it, "d/sub").unwrap();
    assert_eq!(all(&it), ["d/", "d/new/", "d/sub", "e/"]);
}

#[test]
fn numbers_of_files_that_are_gone_serve_again() {
    let mut it = Tree::new(10, 0);
    for _ in 0..100 {
        file(&mut it, "same").unwrap();
    }
    let more = (0..20).map(|n| file(&mut it, &format!("f{n}"))).filter(Result::is_ok).count();
    assert_eq!(more, 8);
}
