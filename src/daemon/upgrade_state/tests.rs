use std::os::fd::IntoRawFd;

use super::*;

fn taken(text: &[u8], fds: Vec<BorrowedFd<'_>>) -> Result<UpgradeState, UpgradeStateError> {
    take(send(text, fds).unwrap().into_raw_fd())
}

fn document(socket: usize) -> serde_json::Value {
    let spec = serde_json::json!({
        "client_name": "c", "host": "h", "path": "/p", "username": null,
        "password": null, "tls": false,
    });
    let id = uuid::Uuid::new_v4();
    serde_json::json!({
        "version": WHOLE,
        "located": {
            "volume": "v", "volume_id": id, "image": "/i", "gfid": id, "size": 512,
            "set": {
                "name": "v-replicate-0", "bricks": [spec], "arbiter_count": 0,
                "pending_names": ["p"], "quorum": "Default",
            },
        },
        "brick": 0,
        "holder": Holder::here("h").encode(),
        "server": ["h", 24007],
        "fence": "Advisory",
        "bricks": [{ "socket": socket, "last_xid": 7, "open": 3, "published": "Advisory" }],
        "local": 1,
        "listener": null,
        "control": 2,
        "front_end": { "stream": 3, "writeback": false, "said": [[5, [1, 2], [4, 5]]] },
        "queues": [2, 256],
        "since": 9,
    })
}

#[test]
fn what_is_left_is_found_again() {
    let files: Vec<File> = (0..6).map(|_| tempfile::tempfile().unwrap()).collect();
    let fds: Vec<_> = files.iter().map(AsFd::as_fd).collect();
    let text = serde_json::to_vec(&document(0)).unwrap();
    let kept = taken(&text, fds.clone()).unwrap();
    let number = |fd: BorrowedFd<'_>| rustix::fs::fstat(fd).unwrap().st_ino;
    let brick = kept.bricks.bricks[0].as_ref().unwrap();
    assert_eq!((brick.connection.last_xid, brick.open), (7, Some(3)));
    assert_eq!(number(brick.connection.socket.as_fd()), number(fds[0]));
    assert_eq!(number(kept.local.as_fd()), number(fds[1]));
    let front_end = kept.front_end.unwrap();
    assert_eq!(number(front_end.stream.as_fd()), number(fds[3]));
    assert_eq!(front_end.writeback, Some(false));
    let said = &front_end.said[0];
    assert_eq!((said.code, &said.body[..]), (5, &[1, 2][..]));
    assert_eq!(number(said.fds[1].as_fd()), number(fds[5]));
}

#[test]
fn a_document_of_a_whole_image_is_as_before_shards_and_one_of_shards_says_which_are_guarded() {
    let files: Vec<File> = (0..6).map(|_| tempfile::tempfile().unwrap()).collect();
    let fds = || files.iter().map(AsFd::as_fd).collect::<Vec<_>>();
    let old = taken(&serde_json::to_vec(&document(0)).unwrap(), fds()).unwrap();
    assert!(old.bricks.bricks[0].as_ref().unwrap().guarded.is_empty());
    assert_eq!(version_of(&old.place.located), WHOLE);

    let mut shards = document(0);
    shards["version"] = SHARDS.into();
    let gfids = [uuid::Uuid::from_u128(7); 3];
    shards["located"]["pieces"] = serde_json::json!({ "size": 128, "gfids": gfids });
    shards["bricks"][0]["guarded"] = serde_json::json!([1, 3]);
    let kept = taken(&serde_json::to_vec(&shards).unwrap(), fds()).unwrap();
    let guarded = &kept.bricks.bricks[0].as_ref().unwrap().guarded;
    assert_eq!(guarded, &[FileIndex(1), FileIndex(3)]);
    assert_eq!(version_of(&kept.place.located), SHARDS);
    assert_eq!(kept.place.located.layout().len(), 4);
}

#[test]
fn more_file_descriptors_than_go_at_once_arrive_in_order() {
    let files: Vec<File> = (0..6).map(|_| tempfile::tempfile().unwrap()).collect();
    let many = 2 * AT_ONCE + 3;
    let fds: Vec<_> = (0..many).map(|nth| files[nth % 6].as_fd()).collect();
    let found = receive(&send(b"", fds.clone()).unwrap()).unwrap();
    assert_eq!(found.len(), 1 + many);
    let number = |fd: BorrowedFd<'_>| rustix::fs::fstat(fd).unwrap().st_ino;
    for (sent, found) in fds.iter().zip(&found[1..]) {
        assert_eq!(number(*sent), number(found.as_fd()));
    }
}

#[test]
fn a_document_of_another_version_or_a_damaged_one_is_not_used() {
    let files: Vec<File> = (0..6).map(|_| tempfile::tempfile().unwrap()).collect();
    let fds: Vec<_> = files.iter().map(AsFd::as_fd).collect();
    assert!(matches!(
        taken(br#"{"version":3}"#, vec![]),
        Err(UpgradeStateError::Version { found: 3 })
    ));
    let whole = serde_json::to_vec(&document(0)).unwrap();
    for text in [&b""[..], b"{}", &whole[..whole.len() - 1]] {
        let taken = taken(text, fds.clone());
        assert!(matches!(taken, Err(UpgradeStateError::Document(_))));
    }
    // A number twice, or one too many.
    for socket in [1, 6, usize::MAX] {
        let text = serde_json::to_vec(&document(socket)).unwrap();
        assert!(matches!(
            taken(&text, fds.clone()),
            Err(UpgradeStateError::Missing(_))
        ));
    }
    let mut other = document(0);
    other["bricks"] = serde_json::json!([]);
    let text = serde_json::to_vec(&other).unwrap();
    assert!(matches!(
        taken(&text, fds),
        Err(UpgradeStateError::Missing(_))
    ));
    let no_socket = tempfile::tempfile().unwrap().into_raw_fd();
    assert!(matches!(take(no_socket), Err(UpgradeStateError::Read(_))));
}
