//! Meeting by a private file.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::super::Member;
use super::super::port_file::PortFile;
use super::super::tcp::{self, DataPlaneChoice, Rendezvous};
use super::*;

fn meet(rank: Rank, file: &PortFile) -> Result<ProcessGroup> {
    let member = Member { rank, local_rank: LocalRank(0), world: world(3) };
    let rendezvous = if rank.is_coordinator() {
        std::thread::sleep(Duration::from_millis(200)); // the others look first
        file.bind()?
    } else {
        Rendezvous::Find(Box::new(|| file.read()))
    };
    let job = JobId::without_secret("job");
    tcp::join(member, rendezvous, &job, DataPlaneChoice::Tcp, patient())
}

#[test]
fn ranks_meet_even_where_a_dead_job_has_left_its_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_owned();
    on_ranks(3, {
        let path = path.clone();
        move |rank| meet(rank, &PortFile::in_folder(&path, "run").unwrap()).map(drop).unwrap()
    });
    let left: Vec<_> = fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(left.len(), 1, "one file, and no draft: {left:?}");
    assert_eq!(fs::metadata(&left[0]).unwrap().permissions().mode() & 0o777, 0o600);
    let results = on_ranks(3, move |rank| {
        let file = PortFile::in_folder(&path, "run").unwrap();
        let group = meet(rank, &file).unwrap();
        if rank.is_coordinator() {
            file.remove();
        }
        roll_call(&group, Channel::Save, "all")
    });
    assert_eq!(results, vec![Ok(vec![0, 1, 2]); 3]);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn a_file_that_others_can_read_or_a_link_is_not_believed() {
    let folder = tempfile::tempdir().unwrap();
    let file = PortFile::in_folder(folder.path(), "run").unwrap();
    assert!(file.read().unwrap().is_none());
    assert!(!file.has_warned(), "that there is none yet is usual");
    on_ranks(1, {
        let path = folder.path().to_owned();
        move |_| {
            let file = PortFile::in_folder(&path, "run").unwrap();
            let Rendezvous::Bind { publish, .. } = file.bind().unwrap() else { panic!() };
            publish.unwrap()("127.0.0.1:9".parse().unwrap()).unwrap();
        }
    });
    assert_eq!(file.read().unwrap().unwrap().address, "127.0.0.1:9");
    let path = fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap().path();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    assert!(file.read().unwrap().is_none() && file.has_warned());
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let elsewhere = folder.path().join("elsewhere");
    fs::rename(&path, &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &path).unwrap();
    let file = PortFile::in_folder(folder.path(), "run").unwrap();
    assert!(file.read().unwrap().is_none() && file.has_warned());
}
