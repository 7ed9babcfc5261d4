# `terraform test` against a mocked provider: no account, no network, no resources.
mock_provider "aws" {
  mock_data "aws_ssm_parameter" {
    defaults = { value = "ami-0123456789abcdef0" }
  }
  mock_data "aws_region" {
    defaults = { name = "eu-central-1" }
  }
  mock_data "aws_partition" {
    defaults = { partition = "aws" }
  }
  mock_data "aws_caller_identity" {
    defaults = { account_id = "123456789012" }
  }
  mock_resource "aws_iam_instance_profile" {
    defaults = { arn = "arn:aws:iam::123456789012:instance-profile/farm-workers" }
  }
  mock_resource "aws_autoscaling_policy" {
    defaults = { arn = "arn:aws:autoscaling:eu-central-1:123456789012:scalingPolicy:1:autoScalingGroupName/farm-workers:policyName/first" }
  }
  mock_resource "aws_launch_template" {
    defaults = { id = "lt-0123456789abcdef0", latest_version = 1 }
  }
}

variables {
  release_uri         = "s3://farm-releases/releases/farm.tar.gz"
  bucket              = "farm-pictures"
  vpc_id              = "vpc-1"
  subnet_ids          = ["subnet-1", "subnet-2"]
  metrics_cidr_blocks = ["10.0.0.0/24"]
  max_size            = 7
}

run "makes_the_group" {
  assert {
    condition     = aws_autoscaling_group.worker.max_size == 7 && aws_autoscaling_group.worker.capacity_rebalance
    error_message = "The group must follow its variables and replace spot machines early."
  }
  assert {
    condition     = aws_autoscaling_lifecycle_hook.drain.lifecycle_transition == "autoscaling:EC2_INSTANCE_TERMINATING"
    error_message = "Scale-in must wait for the drain."
  }
  assert {
    condition     = aws_launch_template.worker.metadata_options[0].http_tokens == "required"
    error_message = "Metadata must need a token, or a request forged by a client could read the role's keys."
  }
  assert {
    condition     = startswith(base64decode(aws_launch_template.worker.user_data), "#cloud-config\n")
    error_message = "User data must be what cloud-init reads."
  }
  assert {
    condition     = yamldecode(base64decode(aws_launch_template.worker.user_data)).runcmd[0][0] == "/usr/local/sbin/farm-first-boot"
    error_message = "User data must be well-formed and run the first boot."
  }
  assert {
    condition     = !strcontains(base64decode(aws_launch_template.worker.user_data), "PASSWORD")
    error_message = "No secret may be in user data."
  }
  assert {
    condition     = alltrue([for statement in jsondecode(aws_iam_role_policy.pictures.policy).Statement : !contains(flatten([statement.Action]), "s3:*")])
    error_message = "A worker may do only what it does."
  }
  assert {
    condition     = strcontains(aws_iam_role_policy.pictures.policy, "arn:aws:s3:::farm-pictures/jobs/*")
    error_message = "A worker writes under jobs/ of the farm's bucket."
  }
  assert {
    condition     = length(aws_security_group.worker.ingress) == 1
    error_message = "Only Prometheus may call in."
  }
  assert {
    condition = one([
      for metric in aws_autoscaling_policy.wanted.target_tracking_configuration[0].customized_metric_specification[0].metrics :
      metric.metric_stat[0].metric[0] if metric.id == "wanted"
    ]).metric_name == "DesiredWorkers"
    error_message = "The group follows the number that farm-publish puts into CloudWatch."
  }
  assert {
    condition = try(length(one([
      for metric in aws_autoscaling_policy.wanted.target_tracking_configuration[0].customized_metric_specification[0].metrics :
      metric.metric_stat[0].metric[0] if metric.id == "wanted"
    ]).dimensions), 0) == 0
    error_message = "A group that serves every checkpoint follows what the whole farm needs."
  }
  assert {
    condition     = aws_autoscaling_group.worker.min_size == 0 && length(aws_autoscaling_policy.first.step_adjustment) == 1
    error_message = "A group scales to zero, and from there."
  }
  assert {
    condition     = !strcontains(base64decode(aws_launch_template.worker.user_data), "FARM_CHECKPOINT=")
    error_message = "Machines serve whatever is in the bucket unless they are told otherwise."
  }
  assert {
    condition     = aws_autoscaling_lifecycle_hook.drain.heartbeat_timeout > 60 && aws_autoscaling_lifecycle_hook.drain.default_result == "CONTINUE"
    error_message = "Scale-in must wait longer than a worker may take to drain, and never for ever."
  }
  assert {
    condition     = aws_autoscaling_group.worker.mixed_instances_policy[0].instances_distribution[0].on_demand_base_capacity == 1
    error_message = "Spot and on-demand machines are mixed."
  }
}

run "refuses_a_drain_that_is_too_short" {
  command = plan
  variables {
    drain_seconds = 30
  }
  expect_failures = [var.drain_seconds]
}

run "refuses_a_release_that_is_no_archive" {
  command = plan
  variables {
    release_uri = "https://example.com/farm.zip"
  }
  expect_failures = [var.release_uri]
}

run "restricts_a_group_to_some_checkpoints" {
  command = plan
  variables {
    checkpoints         = ["a", "b"]
    checkpoints_uri     = "s3://farm-releases/checkpoints/"
    preload             = "b"
    weights_cache_bytes = 100000000000
  }
  assert {
    condition     = strcontains(base64decode(aws_launch_template.worker.user_data), "FARM_CHECKPOINT=a,b ")
    error_message = "Workers are told what to serve."
  }
  assert {
    condition     = strcontains(base64decode(aws_launch_template.worker.user_data), "FARM_PRELOAD=b FARM_WEIGHTS_CACHE_BYTES=100000000000")
    error_message = "Workers are told what to load first and how much to keep."
  }
  assert {
    condition     = strcontains(aws_iam_role_policy.itself.policy, "arn:aws:s3:::farm-releases/checkpoints/*")
    error_message = "A machine may read the checkpoints that it copies."
  }
}

run "refuses_a_name_that_is_none" {
  command = plan
  variables {
    checkpoints = ["a b"]
  }
  expect_failures = [var.checkpoints]
}
