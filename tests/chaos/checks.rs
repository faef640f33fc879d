//! What must hold of the copies, whatever happened: read straight from the
//! bricks' files.

use bypass_harness::{Cluster, Volume};

use super::image::Image;
use super::oracle::{Oracle, SECTOR};

/// Nothing acknowledged is missing on the copy that is served, nobody accuses
/// it, and whoever differs from it is accused: by it, and by a quorum. Of each file.
///
/// No writer may be at work. Marks are read before the copies: a heal at work
/// takes a mark away only after it made that copy equal.
pub fn served_copy_is_right(
    image: Image,
    volume: &Volume,
    local: usize,
    oracle: &Oracle,
) -> Result<(), String> {
    let mut files = image.files();
    files.try_for_each(|file| served_file_is_right(image, volume, local, oracle, file))
}

fn served_file_is_right(
    image: Image,
    volume: &Volume,
    local: usize,
    oracle: &Oracle,
    file: u64,
) -> Result<(), String> {
    let marks = volume.marks(&image.path(volume, file));
    let marks = marks.map_err(|error| error.to_string())?;
    let bricks = 0..volume.bricks().len();
    if let Some(by) = bricks.clone().find(|&by| marks.accuses(by, local)) {
        return Err(format!(
            "brick {by} accuses the served copy {local} of file {file}:\n{marks}"
        ));
    }
    let copy = image.read(volume, local, file)?;
    let first = image.begin(file) / SECTOR;
    oracle
        .check(first, &copy)
        .map_err(|wrong| format!("the served copy, of brick {local}: {wrong}"))?;
    for peer in bricks.clone().filter(|&peer| peer != local) {
        let accusers = bricks.clone().filter(|&by| marks.accuses(by, peer)).count();
        let marked = marks.accuses(local, peer) && 2 * accusers > volume.bricks().len();
        if !marked {
            same(&copy, &image.read(volume, peer, file)?, first, oracle).map_err(|wrong| {
                format!(
                    "file {file} on brick {peer} differs from brick {local} without marks:\n{marks}{wrong}"
                )
            })?;
        }
    }
    Ok(())
}

/// All copies are equal, and are what was acknowledged. Returns the disk.
pub fn all_copies_are_right(
    image: Image,
    volume: &Volume,
    oracle: &Oracle,
) -> Result<Vec<u8>, String> {
    let mut disk = Vec::new();
    for file in image.files() {
        let first = image.read(volume, 0, file)?;
        let sector = image.begin(file) / SECTOR;
        oracle
            .check(sector, &first)
            .map_err(|wrong| format!("after the heal, brick 0: {wrong}"))?;
        for brick in 1..volume.bricks().len() {
            same(&first, &image.read(volume, brick, file)?, sector, oracle).map_err(|wrong| {
                format!("after the heal file {file} on brick {brick} differs from brick 0: {wrong}")
            })?;
            let sizes = [0, brick].map(|brick| image.size(volume, brick, file));
            if sizes[0] != sizes[1] {
                return Err(format!(
                    "after the heal file {file} has other sizes: {sizes:?}"
                ));
            }
        }
        disk.extend(first);
    }
    Ok(disk)
}

/// No daemon and no healer has panicked.
pub fn nobody_panicked(cluster: &Cluster) -> Result<(), String> {
    for node in cluster.nodes() {
        let entries = std::fs::read_dir(node.place().dir()).map_err(|error| error.to_string())?;
        let logs = entries.flatten().map(|entry| entry.path());
        for log in logs.filter(|path| path.extension().is_some_and(|end| end == "log")) {
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            if let Some(line) = text.lines().find(|line| line.contains("panicked")) {
                return Err(format!("{}: {line}", log.display()));
            }
        }
    }
    Ok(())
}

fn same(one: &[u8], other: &[u8], first: usize, oracle: &Oracle) -> Result<(), String> {
    if one == other {
        return Ok(());
    }
    let byte = one.iter().zip(other).take_while(|(a, b)| a == b).count();
    let wrong = oracle.check(first, other).err();
    let wrong = wrong.unwrap_or_else(|| "only in what was never answered".to_owned());
    Err(format!("from byte {byte} on; it has: {wrong}"))
}
