//! `launch/kubernetes.yaml`: whether what it sets fits together, and what the launcher makes of it.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, unreachable_pub, reason = "helpers of tests")]

#[path = "jobs/launched.rs"]
mod launched;
#[path = "jobs/marked.rs"]
mod marked;
#[path = "jobs/scripts.rs"]
mod scripts;

use std::fs;
use std::process::{Command, Stdio};

use granit_parser::{Event, Options, Parser, ScalarStyle, StrInput};
use serde_json::{Map, Value};

use launched::{Ended, Launch};
use scripts::script;

const RANKS_OF_A_POD: u64 = 8;
const PODS: u64 = 2;

fn value<'a>(events: &mut Parser<'a, StrInput<'a>>, event: Event<'a>) -> Value {
    match event {
        Event::Scalar(text, style, ..) => match text.parse::<u64>() {
            Ok(number) if style == ScalarStyle::Plain => number.into(),
            _ if text == "true" && style == ScalarStyle::Plain => true.into(),
            _ => Value::String(text.into_owned()),
        },
        Event::SequenceStart(..) => {
            let mut items = Vec::new();
            loop {
                match events.next_event().unwrap().unwrap().0 {
                    Event::SequenceEnd => return items.into(),
                    event => items.push(value(events, event)),
                }
            }
        }
        Event::MappingStart(..) => {
            let mut entries = Map::new();
            let mut key = None;
            loop {
                match (events.next_event().unwrap().unwrap().0, key.take()) {
                    (Event::MappingEnd, _) => return Value::Object(entries),
                    (event, None) => key = Some(value(events, event)),
                    (event, Some(name)) => {
                        let name = name.as_str().unwrap().to_owned();
                        let held = value(events, event);
                        assert!(entries.insert(name, held).is_none(), "a key is given twice");
                    }
                }
            }
        }
        other => panic!("{other:?}"),
    }
}

/// The object of that kind.
fn object(kind: &str) -> Value {
    let text = fs::read_to_string(script("kubernetes.yaml")).unwrap();
    let mut options = Options::default();
    options.set_emit_comments(false);
    let mut events = Parser::new_from_str_with_options(&text, options);
    let mut objects = Vec::new();
    while let Some(event) = events.next_event() {
        let event = event.unwrap().0;
        if matches!(event, Event::MappingStart(..)) {
            objects.push(value(&mut events, event));
        }
    }
    objects.into_iter().find(|object| object["kind"] == kind).unwrap()
}

/// What describes a pod of the job.
fn pod() -> Value {
    object("Job")["spec"]["template"].clone()
}

fn container() -> Value {
    let containers = pod()["spec"]["containers"].clone();
    assert_eq!(containers.as_array().unwrap().len(), 1);
    containers[0].clone()
}

fn words(list: &Value) -> Vec<String> {
    list.as_array().unwrap().iter().map(|word| word.as_str().unwrap().to_owned()).collect()
}

/// What follows a flag of the launcher.
fn flag(name: &str) -> String {
    let command = words(&container()["command"]);
    command[command.iter().position(|word| word == name).unwrap() + 1].clone()
}

/// What one pod does, with a shell script as the program.
fn run_pod(index: u64, program: &str) -> Ended {
    let container = container();
    let command = words(&container["command"]);
    let (program_of_file, arguments) = command[1..].split_last().unwrap();
    assert_eq!(
        (command[0].as_str(), program_of_file.as_str()),
        ("/app/launch/torchrun.sh", "/app/train")
    );
    let index = index.to_string();
    let arguments = arguments.iter().map(|word| word.replace("$(JOB_COMPLETION_INDEX)", &index));
    let mut launcher = Command::new(script("torchrun.sh"));
    launcher.args(arguments).args(["sh", "-c", program]).stdin(Stdio::null());
    Launch::prepared(&mut launcher, |launcher, _| {
        for variable in container["env"].as_array().unwrap() {
            let given = variable["value"].as_str().unwrap_or("secret");
            launcher.env(variable["name"].as_str().unwrap(), given);
        }
    })
    .end()
}

#[test]
fn the_pods_start_the_ranks_of_one_job_each_with_the_variables_that_it_reads() {
    let told = "echo $RANK $LOCAL_RANK $WORLD_SIZE $LOCAL_WORLD_SIZE $MASTER_ADDR $MASTER_PORT \
                $TCH_CHECKPOINT_TOKEN $OMP_NUM_THREADS $NCCL_SOCKET_IFNAME >> said$RANK";
    for pod in 0..PODS {
        let ended = run_pod(pod, told).with_code(0);
        for local in 0..RANKS_OF_A_POD {
            let rank = pod * RANKS_OF_A_POD + local;
            let line = format!("{rank} {local} 16 8 train-0.train 29500 secret 8 eth0\n");
            assert_eq!(ended.read(&format!("said{rank}")), line);
        }
    }
}

#[test]
fn a_pod_that_saved_or_was_evicted_is_started_again_and_counts_for_nothing() {
    // What the launcher ends with when its ranks have saved.
    run_pod(1, "exit 75").with_code(75);
    let job = object("Job")["spec"].clone();
    let rules = job["podFailurePolicy"]["rules"].as_array().unwrap().clone();
    let ignored = |rule: &&Value| rule["action"] == "Ignore";
    let ignored: Vec<&Value> = rules.iter().filter(ignored).collect();
    assert_eq!(ignored[0]["onPodConditions"][0]["type"], "DisruptionTarget");
    assert_eq!(ignored[1]["onExitCodes"]["values"], serde_json::json!([75]));
    let wrong = rules.iter().find(|rule| rule["action"] == "FailJob").unwrap();
    assert_eq!(wrong["onExitCodes"]["values"], serde_json::json!([2]));
    for rule in [ignored[1], wrong] {
        assert_eq!(rule["onExitCodes"]["operator"], "In");
        assert_eq!(rule["onExitCodes"]["containerName"], container()["name"]);
    }
    // Without these two Kubernetes takes no such policy, or begins anew beside a save.
    assert_eq!(pod()["spec"]["restartPolicy"], "Never");
    assert_eq!(job["podReplacementPolicy"], "Failed");
    let env = container()["env"].clone();
    let grace = env.as_array().unwrap().iter().find(|v| v["name"] == "TCH_CHECKPOINT_GRACE");
    let grace: u64 = grace.unwrap()["value"].as_str().unwrap().parse().unwrap();
    assert!(grace < pod()["spec"]["terminationGracePeriodSeconds"].as_u64().unwrap());
}

#[test]
fn ranks_find_rank_0_by_the_name_of_its_pod() {
    let (service, job) = (object("Service"), object("Job"));
    let name = |object: &Value| object["metadata"]["name"].as_str().unwrap().to_owned();
    assert_eq!(service["spec"]["clusterIP"], "None");
    assert_eq!(service["spec"]["publishNotReadyAddresses"], true);
    assert_eq!(service["spec"]["selector"], pod()["metadata"]["labels"]);
    assert_eq!(pod()["spec"]["subdomain"], name(&service).as_str());
    assert_eq!(flag("--master-addr"), format!("{}-0.{}", name(&job), name(&service)));
    let port: u64 = flag("--master-port").parse().unwrap();
    assert_eq!(service["spec"]["ports"][0]["port"], port);
    assert_eq!(container()["ports"][0]["containerPort"], port);
    assert_eq!(job["spec"]["completionMode"], "Indexed");
    assert_eq!(flag("--node-rank"), "$(JOB_COMPLETION_INDEX)");
    for count in ["completions", "parallelism"] {
        assert_eq!(job["spec"][count], PODS);
    }
    assert_eq!(flag("--nodes"), PODS.to_string());
}

#[test]
fn a_pod_has_a_gpu_for_each_rank_shared_memory_and_the_checkpoints_of_all() {
    let (container, claim) = (container(), object("PersistentVolumeClaim"));
    assert_eq!(container["resources"]["limits"]["nvidia.com/gpu"], RANKS_OF_A_POD);
    assert_eq!(flag("-n"), RANKS_OF_A_POD.to_string());
    let volumes = pod()["spec"]["volumes"].clone();
    let mounts = container["volumeMounts"].as_array().unwrap().clone();
    let volume_at = |path: &str| {
        let mount = mounts.iter().find(|mount| mount["mountPath"] == path).unwrap();
        let volumes = volumes.as_array().unwrap();
        volumes.iter().find(|volume| volume["name"] == mount["name"]).unwrap().clone()
    };
    assert_eq!(volume_at("/dev/shm")["emptyDir"]["medium"], "Memory");
    let claimed = volume_at("/checkpoints")["persistentVolumeClaim"]["claimName"].clone();
    assert_eq!(claimed, claim["metadata"]["name"]);
    assert_eq!(claim["spec"]["accessModes"], serde_json::json!(["ReadWriteMany"]));
}

/// A name that nobody reads would do nothing, without a word.
#[test]
fn every_variable_of_ours_is_one_that_is_read() {
    let readme = fs::read_to_string(script("README.md")).unwrap();
    for variable in container()["env"].as_array().unwrap() {
        let name = variable["name"].as_str().unwrap();
        assert!(readme.contains(&format!("`{name}`")), "{name} is not in launch/README.md");
    }
}
